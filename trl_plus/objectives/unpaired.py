"""Losses on single completions with a desirable/undesirable label."""

import torch
from torch import Tensor

from trl_plus.objectives.completions import Completions, at_least_float32


def reference_point(log_ratio_sum: Tensor, weight_sum: Tensor) -> Tensor:
    """z_ref = max(0, mean log-ratio of mismatched completions). KTO (https://huggingface.co/papers/2402.01306).

    Args:
        log_ratio_sum: scalar, the (weighted) sum of policy minus reference log-likelihood over the KL rows of the
            whole effective batch: a completion of the batch, under a prompt that it does not belong to.
        weight_sum: scalar, the number (sum of weights) of those rows. Zero gives z_ref = 0.

    Returns:
        Scalar without gradient, one reference point for desirable and undesirable rows.
    """
    mean = at_least_float32(log_ratio_sum) / weight_sum.clamp(min=torch.finfo(torch.float32).tiny)
    return mean.clamp(min=0).detach()


def _signed(completions: Completions, label: Tensor) -> tuple[Tensor, Tensor]:
    """The log-ratios, and +1 for desirable rows, -1 for undesirable ones. Both (B,)."""
    ratio = completions.log_ratio
    # in the dtype of the ratio: a float32 sign times beta would round beta to float32
    return ratio, torch.where(label.bool(), 1.0, -1.0).to(ratio.dtype)


def _class_weight(label: Tensor, like: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    # filled in the dtype of the loss: `where` of two Python floats would round them to float32 first
    return torch.full_like(like, undesirable_weight).masked_fill(label.bool(), desirable_weight)


def kto(
    completions: Completions,
    label: Tensor,
    z_ref: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - s(+-beta (ratio - z_ref))), + for desirable rows. KTO, eq. 7 (https://huggingface.co/papers/2402.01306).

    Args:
        completions: B rows, with reference.
        label: (B,), bool or 0/1, True for desirable rows.
        z_ref: scalar from `reference_point`.
        desirable_weight, undesirable_weight: the paper's lambda_D and lambda_U.

    Returns:
        (B,), the weighted loss of each row in input order.
    """
    ratio, sign = _signed(completions, label)
    weight = _class_weight(label, ratio, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-sign * beta * (ratio - z_ref))


def apo_zero_unpaired(
    completions: Completions,
    label: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - s(+-beta ratio)): APO-zero on single rows, KTO with z_ref = 0 (https://huggingface.co/papers/2408.06266)."""
    ratio, sign = _signed(completions, label)
    weight = _class_weight(label, ratio, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-sign * beta * ratio)
