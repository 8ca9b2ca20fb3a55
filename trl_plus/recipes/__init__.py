"""Recipes: one YAML file to one validated run. Imports neither torch nor TRL."""
