"""Datasets: loading, and the formats that preference data comes in."""
