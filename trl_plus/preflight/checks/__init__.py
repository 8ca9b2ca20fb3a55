"""The checks, one small function each. Importing this package registers them all."""

from trl_plus.preflight.checks import content, duplicates, labels, lengths, shape, templates, tokens, turns

__all__ = ["content", "duplicates", "labels", "lengths", "shape", "templates", "tokens", "turns"]
