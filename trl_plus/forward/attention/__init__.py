"""Attention over row layouts, for any model of transformers that asks its `AttentionInterface`."""

from trl_plus.forward.attention.cuda import OLDEST
from trl_plus.forward.attention.interface import EAGER, Unsupported, carry, proving, register

__all__ = ["EAGER", "OLDEST", "Unsupported", "carry", "proving", "register"]
