"""TRL's `loss_type` names -> our objectives, and weighted mixes of them."""

from typing import Any

from torch import Tensor

from trl_plus import objectives as O
from trl_plus.objectives import Completions


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


# Losses that are functions of one pair, so that sums over any cut of the batch add up
ROW_WISE = frozenset(
    {
        "sigmoid", "robust", "ipo", "exo_pair", "discopop", "sigmoid_norm", "hinge", "nca_pair", "bco_pair",
        "sppo_hard", "apo_zero", "apo_down", "sft",
    }
)  # fmt: skip


def reads_only_rows(args: Any) -> bool:
    """Whether our per-pair path computes this configuration; TRL's own loss does otherwise.

    TRL's variants of the log-ratio itself (f-divergences, LD-DPO, WPO weighting) and losses that sort across rows stay
    with TRL, as does whatever a later TRL adds.
    """
    plain = args.f_divergence_type == "reverse_kl" and args.ld_alpha is None and not args.use_weighting
    return plain and set(args.loss_type) <= ROW_WISE


def refuse_what_upstream_ignores(args: Any) -> None:
    """Options that are ours, and that TRL's own loss would ignore without a word.

    Raises:
        ValueError: the loss is TRL's and such an option is set.
    """
    if reads_only_rows(args):
        return
    cure = "remove it, or the f-divergence, ld_alpha, use_weighting or aot that it is combined with."
    if args.label_smoothing and "sigmoid" in args.loss_type:
        raise ValueError(f"`label_smoothing` has no effect on `sigmoid` here, where TRL computes the loss: {cure}")
    if getattr(args, "ipo_reduction", "mean") != "mean":
        raise ValueError(f"`ipo_reduction` has no effect here, where TRL computes the loss: {cure}")


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
