"""Recipes: one YAML file to one validated run. Importing this package imports neither torch nor TRL."""

from trl_plus.recipes.errors import RecipeError
from trl_plus.recipes.methods import METHODS, Method
from trl_plus.recipes.recipe import Recipe, load_recipe

__all__ = ["METHODS", "Method", "Recipe", "RecipeError", "load_recipe"]
