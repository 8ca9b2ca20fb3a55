"""Attention over row layouts, for any model of transformers that asks its `AttentionInterface`."""

from trl_plus.attention.cuda import OLDEST
from trl_plus.attention.interface import EAGER, carry, register
from trl_plus.attention.proof import Unsupported, proving

__all__ = ["EAGER", "OLDEST", "Unsupported", "carry", "proving", "register"]
