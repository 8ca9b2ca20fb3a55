"""Attention over row layouts, for any model of transformers that asks its `AttentionInterface`."""

from trl_plus.attention.interface import EAGER, Unsupported, carry, register

__all__ = ["EAGER", "Unsupported", "carry", "register"]
