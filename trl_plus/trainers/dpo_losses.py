"""TRL's `loss_type` names -> our objectives, and weighted mixes of them."""

from typing import Any

from torch import Tensor

from trl_plus import objectives as O
from trl_plus.objectives import Completions
from trl_plus.trainers.loss_types import ROW_WISE


def _one(loss_type: str, chosen: Completions, rejected: Completions, args: Any) -> Tensor:
    """(B,): one loss of TRL's list. `sft` is a token mean and lives in the trainer."""
    beta, smoothing = args.beta, args.label_smoothing
    match loss_type:
        case "sigmoid":
            return O.dpo(chosen, rejected, beta=beta, label_smoothing=smoothing)
        case "robust":
            return O.robust(chosen, rejected, beta=beta, label_smoothing=smoothing)
        case "ipo":
            return O.ipo(chosen, rejected, beta=beta, reduction=getattr(args, "ipo_reduction", "mean"))
        case "exo_pair":
            return O.exo_pair(chosen, rejected, beta=beta, label_smoothing=smoothing)
        case "discopop":
            return O.discopop(chosen, rejected, beta=beta, tau=args.discopop_tau)
        case "sigmoid_norm":
            return O.dpo_norm(chosen, rejected, beta=beta)
        case "hinge" | "nca_pair" | "bco_pair" | "sppo_hard" | "apo_zero" | "apo_down":
            return getattr(O, loss_type)(chosen, rejected, beta=beta)
    raise ValueError(f"Unknown loss_type {loss_type!r}: use one of {', '.join(sorted(ROW_WISE))}, aot, aot_unpaired.")


def pair_losses(
    chosen: Completions, rejected: Completions, loss_types: list[str], loss_weights: list[float], args: Any
) -> Tensor:
    """(B,): the weighted sum of the losses named, without `sft`."""
    terms = [
        factor * _one(name, chosen, rejected, args)
        for name, factor in zip(loss_types, loss_weights, strict=True)
        if name != "sft"
    ]
    return sum(terms) if terms else chosen.total * 0.0
