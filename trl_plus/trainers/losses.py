"""The losses of DPOTrainer: `loss_type` names to our objectives, and what is left to TRL."""

from typing import Any

from torch import Tensor

from trl_plus import objectives
from trl_plus.methods import FAMILIES
from trl_plus.objectives import Completions

LOSSES = FAMILIES["DPO"].losses


def computed_here(args: Any) -> bool:
    """True if our per-pair path computes this configuration. Otherwise TRL's own loss does.

    TRL's variants of the log-ratio itself (f-divergences, LD-DPO, WPO weighting), losses that sort rows, and losses of
    a later TRL stay with TRL.
    """
    plain = args.f_divergence_type == "reverse_kl" and args.ld_alpha is None and not args.use_weighting
    return plain and all(name in LOSSES and LOSSES[name].exact for name in args.loss_type)


def refuse_ignored(args: Any) -> None:
    """Refuse options of ours that TRL's own loss would ignore.

    Raises:
        ValueError: TRL computes the loss, and such an option is set.
    """
    if computed_here(args):
        return
    fix = "remove it, or the f-divergence, ld_alpha, use_weighting or aot that it is combined with."
    if args.label_smoothing and "sigmoid" in args.loss_type:
        raise ValueError(f"`label_smoothing` has no effect on `sigmoid` here, where TRL computes the loss: {fix}")
    for name, default in (("ipo_reduction", "mean"), ("margin_scale", 0.0)):
        if getattr(args, name, default) != default:
            raise ValueError(f"`{name}` has no effect here, where TRL computes the loss: {fix}")


def pair_losses(
    chosen: Completions,
    rejected: Completions,
    loss_types: list[str],
    loss_weights: list[float],
    args: Any,
    margin: Tensor | None = None,
) -> Tensor:
    """(B,): the weighted sum of the losses named. `sft` is a token mean, which the trainer adds.

    Args:
        margin: (B,), for the losses that read one.
    """
    terms = []
    for name, factor in zip(loss_types, loss_weights, strict=True):
        loss = LOSSES[name]
        if loss.objective is None:
            continue
        options = {parameter: getattr(args, key, "mean") for parameter, key in loss.options.items()}
        if loss.margin and margin is not None:
            options["margin"] = margin
        terms.append(factor * getattr(objectives, loss.objective)(chosen, rejected, beta=args.beta, **options))
    return sum(terms) if terms else chosen.total * 0.0
