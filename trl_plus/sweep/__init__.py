"""Runs over a grid of values and seeds, and the differences between the values."""
