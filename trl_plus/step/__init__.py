"""One optimizer step: its rows, its totals, its losses and what is measured of it."""
