"""Lengths and labels of a split, for the table and the page."""

from dataclasses import replace

import numpy as np

from trl_plus.preflight.findings import Lengths, Split
from trl_plus.preflight.tally import Summary
from trl_plus.preflight.target import Target

_BINS, _POINTS = 40, 1000
_QUANTILES = (0.5, 0.9, 0.99, 1.0)


def split_statistics(split: Split, summary: Summary, target: Target) -> Split:
    """The split with its statistics."""
    labels = summary.text.get("label")
    counts = None if labels is None else {"true": int(labels.sum()), "false": int((~labels).sum())}
    tokens, split = summary.tokens, replace(split, shortcut=summary.shortcut)
    if not tokens:
        return replace(split, labels=counts)
    sides = [side for side in target.sides if side in tokens]
    points: list[tuple[int, int]] = []
    if len(sides) == 2:
        step = max(1, len(tokens["chosen"]) // _POINTS)
        points = list(zip(tokens["chosen"][::step].tolist(), tokens["rejected"][::step].tolist(), strict=True))[
            :_POINTS
        ]
    return replace(
        split,
        lengths=[lengths_of(part, tokens[part]) for part in ("prompt", *sides)],
        differences=points,
        labels=counts,
        dropped=int(tokens["dropped"].sum()),
        cut={side: int((tokens[f"{side}_over"] > 0).sum()) for side in sides},
    )


def lengths_of(part: str, values: np.ndarray) -> Lengths:
    """Histogram and quantiles of lengths in tokens."""
    top = int(values.max()) if len(values) else 0
    edges = np.unique(np.linspace(0, top + 1, min(_BINS, top + 1) + 1).round().astype(int))
    counts, _ = np.histogram(values, edges)
    quantiles = (
        {f"{q:g}": float(np.quantile(values, q, method="inverted_cdf")) for q in _QUANTILES} if len(values) else {}
    )
    return Lengths(part, edges.tolist(), counts.tolist(), quantiles, float(values.mean()) if len(values) else 0.0)
