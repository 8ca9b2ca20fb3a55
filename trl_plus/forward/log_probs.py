"""Log-probabilities and statistics of completion tokens, from their logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class HeadOutput(ModelOutput):
    """As TRL's fused output: each (B, T - 1), zero where no label asks for the token; statistics without gradient."""

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None


def placed(parts: tuple[Tensor | None, ...], mask: Tensor) -> HeadOutput:
    """The output whose fields, (N,) each, stand at the N places of a mask (B, T - 1)."""
    return HeadOutput(*(None if x is None else x.new_zeros(mask.shape).masked_scatter(mask, x) for x in parts))


def of_logits(logits: Tensor, targets: Tensor, statistics: bool, squares: bool = False) -> tuple[Tensor | None, ...]:
    """Log-probability, entropy, mean logit, top-1 hit and (`squares`) log(sum p^2) of logits (N, V), each (N,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(1, targets[:, None])[:, 0]
    with torch.no_grad():
        summed = (2 * log_probs).logsumexp(-1) if squares else None
        if not statistics:
            return chosen, None, None, None, summed
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return chosen, entropy, logits.mean(-1), logits.argmax(-1) == targets, summed
