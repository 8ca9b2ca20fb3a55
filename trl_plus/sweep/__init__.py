"""Runs over a grid of values and seeds, and what they show about the values."""
