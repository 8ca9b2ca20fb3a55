"""Preflight: what a dataset holds, looked at and counted on the rows exactly as the trainer will see them."""
