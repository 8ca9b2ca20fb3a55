"""The folder of a run: its files, checkpoints, journal and lock. Imports neither torch nor TRL."""
