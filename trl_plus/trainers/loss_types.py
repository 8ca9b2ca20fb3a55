"""Which of TRL's DPO losses we compute row by row, and which options the rest would ignore."""

from typing import Any

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
