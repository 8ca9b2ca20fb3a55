"""The accuracy of surface features alone on the held-out rows, and the pairs in which they are wrong.

The rule (`data.shortcut_rule`) is fitted on the training rows, with their own weights and not those of `balance`,
since it is what a model could learn there without reading. If these are too few or a stream, it is cross-fitted on the
held-out rows.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from trl_plus.data.shortcut_rule import SurfaceRows, cross_fitted, fit, surface_rows
from trl_plus.evaluation import statistics
from trl_plus.evaluation.intervals import Estimate
from trl_plus.evaluation.measures import Group, pair_group, pair_weights
from trl_plus.evaluation.models import Scores
from trl_plus.evaluation.rows import HeldOut

TRAIN, HELD_OUT = "train", "held_out"
_MOST = 5000  # training rows that the rule is fitted on


@dataclass(frozen=True)
class ByShortcut:
    """Surface features alone beside the models."""

    fitted_on: Annotated[
        Literal["train", "held_out"],
        Field(
            description="Rows that the rule was fitted on: the training rows, or, if these are too few, the held-out "
            "rows of other prompts."
        ),
    ]
    rows: Annotated[int, Field(ge=0, description="Number of these rows.")]
    accuracy: Annotated[
        Estimate | None,
        Field(
            description="Weighted share of pairs that the rule judges right, a tie counted half; interval of a "
            "bootstrap over prompts. Null without pairs."
        ),
    ]
    auc: Annotated[Estimate | None, Field(description="AUC of the labels by the rule's score; null for pairs.")]
    right: Annotated[Group | None, Field(description="Pairs that the rule judges right.")]
    wrong: Annotated[Group | None, Field(description="Pairs that the rule judges wrong.")]


def by_shortcut(held_out: HeldOut, train: Any, models: dict[str, Scores]) -> ByShortcut | None:
    """The figures of a rule that reads nothing; None if there are too few rows to fit one.

    Args:
        train: the prepared training rows.
    """
    known = _train_rows(train)
    own = surface_rows(held_out.rows, None if known is None else known.stock)
    scores = _scores(known, own)
    if scores is None:
        return None
    pairs = held_out.pairs
    judged = scores if held_out.paired else scores[pairs[:, 0]] - scores[pairs[:, 1]]
    hits = (judged > 0) + 0.5 * (judged == 0)
    return ByShortcut(
        fitted_on=HELD_OUT if known is None else TRAIN,
        rows=len((known or own).prompts),
        accuracy=statistics.mean(hits, pair_weights(held_out), held_out.prompts[pairs[:, 0]]) if len(pairs) else None,
        auc=None if held_out.paired else statistics.auc(scores, held_out.labels, held_out.weights, held_out.prompts),
        right=_group("shortcut right", judged > 0, held_out, models),
        wrong=_group("shortcut wrong", judged < 0, held_out, models),
    )


def _train_rows(train: Any) -> SurfaceRows | None:
    """At most `_MOST` training rows, drawn evenly; None if they are too few or cannot be counted."""
    if not hasattr(train, "__len__"):
        return None
    step = max(1, -(-len(train) // _MOST))
    rows = surface_rows(islice(train, 0, None, step), skip=True)
    return rows if len(rows.prompts) and rows.examples.enough else None


def _scores(known: SurfaceRows | None, own: SurfaceRows) -> Floats | None:
    """(N,): of each held-out pair, or of each single completion; None if no rule can be fitted.

    A rule of labelled rows scores a pair by the difference of its two sides. A rule of pairs scores a completion by its
    difference from the mean completion.
    """
    if known is None:
        return cross_fitted(own.examples) if own.examples.enough else None
    rule = fit(known.examples)
    if (known.labels is None) == (own.labels is None):
        return rule.score(own.examples.x)
    if own.labels is None:
        return rule.score(own.features[:, 0].astype(float)) - rule.score(own.features[:, 1].astype(float))
    features = own.features[:, 0].astype(float)
    return rule.score(features - np.mean(features, axis=0))


def _group(name: str, mask: np.ndarray, held_out: HeldOut, models: dict[str, Scores]) -> Group | None:
    return pair_group(name, mask, held_out, models) if mask.any() else None
