"""D7xx: labels and weights of rows, and how rows share prompts."""

import numpy as np

from trl_plus.preflight.registry import ERROR, INFO, WARNING, summary_check
from trl_plus.preflight.tally import Summary, Verdict
from trl_plus.preflight.target import Target

_BOUND = 4 / 3  # KTO, Eq. 8: weight times number of desirable rows, over that of undesirable ones, lies in [1, 4/3]


def _counts(summary: Summary) -> tuple[int, int] | None:
    labels = summary.text.get("label")
    return None if labels is None else (int(labels.sum()), int((~labels).sum()))


@summary_check(
    "D701",
    ERROR,
    "all rows have the same label",
    "Add rows of the other label: KTO compares wanted with unwanted completions.",
)
def one_label(summary: Summary, target: Target) -> Verdict | None:
    counts = _counts(summary)
    if counts is None or min(counts) or sum(counts) < 2 or summary.split != "train":
        return None
    if (bad := summary.hits.get("D105")) is not None and bad.count:  # rows without a proper label are not counted
        return None
    which = "true" if counts[0] else "false"
    if summary.sampled:  # the rare label may stand in rows that were not looked at
        return Verdict(f"All {sum(counts)} rows that were looked at have the label {which}.", severity=WARNING)
    return Verdict(f"All {sum(counts)} rows have the label {which}.")


@summary_check(
    "D702",
    WARNING,
    "the weights of the labels do not balance their numbers",
    "Set one of the two weights as suggested.",
)
def label_balance(summary: Summary, target: Target) -> Verdict | None:
    counts = _counts(summary)
    if counts is None or target.paired_method or summary.split != "train" or not min(counts):
        return None
    desirable, undesirable = counts
    weights = (getattr(target.args, "desirable_weight", 1.0), getattr(target.args, "undesirable_weight", 1.0))
    ratio = weights[0] * desirable / (weights[1] * undesirable) if weights[1] else float("inf")
    if 0.95 <= ratio <= _BOUND * 1.05:
        return None
    low = weights[1] * undesirable / desirable
    other = weights[0] * desirable / undesirable
    return Verdict(
        f"{desirable} desirable and {undesirable} undesirable rows with weights {weights[0]:g} and {weights[1]:g}: the "
        f"weighted ratio is {ratio:.2f}, outside 1 to 1.33 (KTO, Eq. 8). Set `desirable_weight` between {low:.2f} and "
        f"{low * _BOUND:.2f}, or `undesirable_weight` between {other / _BOUND:.2f} and {other:.2f}."
    )


@summary_check(
    "D703",
    INFO,
    "rows of one label stand together in long runs",
    "Shuffle the rows, or leave `train_sampling_strategy` at random.",
)
def label_runs(summary: Summary, target: Target) -> Verdict | None:
    labels = summary.text.get("label")
    if labels is None or summary.scattered or summary.split != "train" or len(labels) < 2:
        return None
    changes = np.flatnonzero(np.diff(labels.astype(np.int8)))
    longest = int(np.diff(np.concatenate([[-1], changes, [len(labels) - 1]])).max())
    if longest < max(32, 0.2 * len(labels)):
        return None
    in_order = summary.streaming or getattr(target.args, "train_sampling_strategy", "random") == "sequential"
    effect = (
        "they are trained on in this order, so whole steps see one label"
        if in_order
        else "rows are shuffled here, so it does no harm; TRL's own KTOTrainer takes them in order"
    )
    return Verdict(f"{longest} rows of one label follow each other; {effect}.", severity=WARNING if in_order else None)


@summary_check(
    "D704",
    INFO,
    "rows share prompts",
    "Nothing has to be done; know that the prompt with most rows weighs most.",
)
def rows_per_prompt(summary: Summary, target: Target) -> Verdict | None:
    keys = summary.text["prompt"]
    prompts, sizes = np.unique(keys, return_counts=True)
    if not len(keys) or len(prompts) > 0.95 * len(keys):
        return None
    return Verdict(
        f"{len(keys)} rows have {len(prompts)} different prompts: {len(keys) / len(prompts):.1f} rows to a prompt, "
        f"{sizes.max()} at most."
    )


@summary_check(
    "D705",
    ERROR,
    "no row has a weight above 0",
    "Set some weights above 0, or remove the column `weight`: the trainer refuses rows that would teach nothing.",
)
def weightless(summary: Summary, target: Target) -> Verdict | None:
    rows = len(summary.index)
    if summary.counts.get("weightless", 0) < rows:
        return None
    seen = " that were looked at" if summary.sampled else ""
    return Verdict(f"The weight of all {rows} rows{seen} is 0.", severity=WARNING if summary.sampled else None)
