"""The options of attention that a model's layer asks for."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Options:
    """Options of one layer.

    Args:
        scaling: factor of the scores; 1 / sqrt(head size) if None.
        dropout: probability that an attention weight is dropped.
        window: positions that a query looks back, its own included; all if None.
        softcap: bound c of the scores, c * tanh(score / c); none if None.
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None


def repeat_heads(keys: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, K, T, D) with each head repeated for the query heads (B, H, ., .) that share it."""
    times = query.size(1) // keys.size(1)
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)
