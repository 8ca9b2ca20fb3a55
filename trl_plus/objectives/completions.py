"""A batch of completions as a model scored them, and the sequence-level quantities that the papers use."""

from dataclasses import dataclass

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged if it is already wider: a sum over tokens loses digits in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Completions:
    """Per-token log-probabilities of B completions, padded to T tokens.

    Args:
        logps: (B, T), any float dtype. Natural logarithms of the policy's probabilities. Masked positions may hold
            anything, NaN included.
        mask: (B, T), bool or 0/1. True on completion tokens (never on the prompt or on padding).
        ref: the reference's log-probabilities of the same tokens, (B, T), or their sums over the completion, (B,).
            None for a loss without a reference.

    Every quantity below is (B,), float32 or the wider dtype of `logps`.
    """

    logps: Tensor
    mask: Tensor
    ref: Tensor | None = None

    @property
    def length(self) -> Tensor:
        """|y|, the number of completion tokens. Zero for an empty completion."""
        return self.mask.bool().sum(-1).to(torch.promote_types(self.logps.dtype, torch.float32))

    @property
    def total(self) -> Tensor:
        """S = sum of log p(y_t), the log-likelihood of the completion."""
        return self._masked_sum(self.logps)

    @property
    def mean(self) -> Tensor:
        """M = S / |y|, the length-normalised log-likelihood. Zero for an empty completion."""
        return self.total / self.length.clamp(min=1)

    @property
    def log_ratio(self) -> Tensor:
        """S of the policy minus S of the reference. The gradient flows through the policy only."""
        if self.ref is None:
            raise ValueError("This objective needs reference log-probabilities: pass `ref`.")
        ref = self.ref if self.ref.dim() == 1 else self._masked_sum(self.ref)
        return self.total - at_least_float32(ref).detach()

    @property
    def mean_log_ratio(self) -> Tensor:
        """`log_ratio` / |y|."""
        return self.log_ratio / self.length.clamp(min=1)

    def _masked_sum(self, x: Tensor) -> Tensor:
        # `where` before the sum: a product with the mask would let NaN or inf of a masked position through
        return torch.where(self.mask.bool(), at_least_float32(x), 0.0).sum(-1)
