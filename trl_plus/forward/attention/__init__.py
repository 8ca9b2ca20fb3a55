"""Attention over row layouts, for any model of transformers that asks its `AttentionInterface`."""

from trl_plus.forward.attention.cuda import OLDEST
from trl_plus.forward.attention.interface import EAGER, carry, register
from trl_plus.forward.attention.proof import Unsupported, proving

__all__ = ["EAGER", "OLDEST", "Unsupported", "carry", "proving", "register"]
