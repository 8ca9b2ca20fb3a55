"""Processes and engines of a run."""
