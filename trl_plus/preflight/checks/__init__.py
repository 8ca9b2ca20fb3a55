"""The checks, one small function each. Importing this package registers them all."""

from trl_plus.preflight.checks import (
    columns,
    content,
    duplicates,
    labels,
    lengths,
    prompts,
    reasoning,
    shape,
    shortcuts,
    templates,
    tokens,
    turns,
)

__all__ = [
    "columns",
    "content",
    "duplicates",
    "labels",
    "lengths",
    "prompts",
    "reasoning",
    "shape",
    "shortcuts",
    "templates",
    "tokens",
    "turns",
]
