"""Dependencies on private or version-bound parts of other libraries. Imports nothing of trl_plus."""
