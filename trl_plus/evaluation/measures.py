"""From scores of held-out completions to the figures of an evaluation, and what surface features alone reach."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trl_plus.data.shortcut_rule import SurfaceRows, cross_fitted, fit, surface_rows
from trl_plus.evaluation import statistics
from trl_plus.evaluation.intervals import ALL_REQUIRED, Estimate, Figure
from trl_plus.evaluation.models import Scores
from trl_plus.evaluation.rows import HeldOut
from trl_plus.evaluation.statistics import Floats, Ints

BASE, TUNED = "base", "tuned"
# The two measures of a completion: the method's own reward, and one that every model has
REWARD, PER_TOKEN = "reward", "logp_per_token"
BUCKETS, FEWEST = 5, 5  # of pairs by length difference, and pairs in one of them
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Accuracy and margin of one model on some pairs, by one measure."""

    accuracy: Annotated[
        Estimate,
        Field(description="Weighted share of pairs whose better side scores strictly higher; Wilson's interval."),
    ]
    accuracy_bootstrap: Annotated[Estimate, Field(description="The same share; interval of a bootstrap over prompts.")]
    margin: Annotated[
        Estimate, Field(description="Weighted mean of better minus worse; interval of a bootstrap over prompts.")
    ]


ByMeasure = Annotated[
    dict[str, Comparison | None],
    Field(
        description="By measure. reward: the method's own reward; null if it is not defined. logp_per_token: mean "
        "log-probability of a completion's tokens, in nats, which every model has.",
        json_schema_extra={"required": [REWARD, PER_TOKEN]},
    ),
]
Estimates = dict[str, dict[str, Estimate | None]]  # by model, then by measure


@dataclass(frozen=True)
class Group:
    """Some pairs under each model, by each measure."""

    __pydantic_config__ = ALL_REQUIRED
    name: Annotated[str, Field(description='"all", a source, or a range of length differences in tokens.')]
    pairs: Annotated[int, Field(ge=0, description="Number of pairs.")]
    models: Annotated[dict[str, ByMeasure], Field(description="By model: base, tuned.")]
    change: Annotated[
        dict[str, Estimate | None],
        Field(
            description="By measure: mean margin of the tuned model minus that of the base, over the same pairs, with "
            "the interval of a bootstrap over prompts. Empty with one model."
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class ByLength:
    """Preferences by length. Lengths are tokens of the completion, as scored."""

    longer_wins: Annotated[
        float,
        Field(ge=0, le=1, description="Share of pairs whose better side is longer: the accuracy of preferring length."),
    ]
    buckets: Annotated[
        list[Group],
        Field(description="Pairs by length difference, better minus worse, from low to high; about equally many each."),
    ]
    better_longer: Annotated[Group | None, Field(description="Pairs whose better side is longer.")]
    better_shorter: Annotated[Group | None, Field(description="Pairs whose better side is shorter.")]
    balanced: Annotated[
        dict[str, dict[str, Figure | None]],
        Field(
            description="By model and measure: mean of the accuracies on those two, which is 0.5 for a preference that "
            "looks at length only; null if one is missing."
        ),
    ]
    correlation: Annotated[
        Estimates,
        Field(
            description="By model and measure: Spearman's correlation of margin and length difference; interval of "
            "Bonett and Wright."
        ),
    ]


@dataclass(frozen=True)
class ByLabel:
    """Single rows by label; estimates by model and measure."""

    rows: Annotated[
        dict[str, int],
        Field(description="Rows of each label.", json_schema_extra={"required": ["desirable", "undesirable"]}),
    ]
    desirable: Annotated[Estimates, Field(description="Mean of the desirable rows.")]
    undesirable: Annotated[Estimates, Field(description="Mean of the undesirable rows.")]
    auc: Annotated[
        Estimates,
        Field(description="Chance that a desirable row scores above an undesirable one, ties counted half."),
    ]


def pair_group(name: str, chosen: Ints | Masks, held_out: HeldOut, models: dict[str, Scores]) -> Group:
    """The figures of some pairs.

    Args:
        chosen: which pairs of `held_out.pairs`.
        models: BASE, TUNED or both.
    """
    pairs = held_out.pairs[chosen]
    weights, prompts = pair_weights(held_out)[chosen], held_out.prompts[pairs[:, 0]]
    margins = {
        (model, measure): margin
        for model, scores in models.items()
        for measure in (REWARD, PER_TOKEN)
        if (margin := _margins(scores, measure, pairs)) is not None
    }
    columns: dict[tuple[str, str, str], Floats] = {}
    for (model, measure), margin in margins.items():
        columns[model, measure, "margin"] = margin
        columns[model, measure, "won"] = (margin > 0).astype(float)
    for measure in (REWARD, PER_TOKEN):
        if (BASE, measure) in margins and (TUNED, measure) in margins:
            columns[TUNED, measure, "change"] = margins[TUNED, measure] - margins[BASE, measure]
    estimates = dict(zip(columns, statistics.means(np.stack([*columns.values()], 1), weights, prompts), strict=True))

    def compared(model: str, measure: str) -> Comparison | None:
        if (model, measure) not in margins:
            return None
        accuracy = statistics.share(margins[model, measure] > 0, weights)
        return Comparison(accuracy, estimates[model, measure, "won"], estimates[model, measure, "margin"])

    return Group(
        name=name,
        pairs=len(pairs),
        models={model: {measure: compared(model, measure) for measure in (REWARD, PER_TOKEN)} for model in models},
        change={measure: estimates.get((TUNED, measure, "change")) for measure in (REWARD, PER_TOKEN)}
        if len(models) == 2
        else {},
    )


def pair_weights(held_out: HeldOut) -> Floats:
    """(P,): a pair weighs what its two sides weigh together, halved."""
    return held_out.weights[held_out.pairs].mean(1)


def _margins(scores: Scores, measure: str, pairs: Ints) -> Floats | None:
    values = scores.reward if measure == REWARD else scores.per_token
    return None if values is None else values[pairs[:, 0]] - values[pairs[:, 1]]


def by_source(held_out: HeldOut, models: dict[str, Scores]) -> list[Group]:
    """The pairs of each source, by name."""
    if held_out.sources is None or not len(held_out.pairs):
        return []
    sources = held_out.sources[held_out.pairs[:, 0]]
    return [pair_group(str(name), sources == name, held_out, models) for name in np.unique(sources)]


def by_length(held_out: HeldOut, models: dict[str, Scores]) -> ByLength | None:
    """The figures by length; None without pairs."""
    if not len(held_out.pairs):
        return None
    lengths = next(iter(models.values())).length
    difference = lengths[held_out.pairs[:, 0]] - lengths[held_out.pairs[:, 1]]
    weights = pair_weights(held_out)
    longer = _group_of("better side longer", difference > 0, held_out, models)
    shorter = _group_of("better side shorter", difference < 0, held_out, models)
    correlation = {
        model: {
            measure: None
            if (margins := _margins(scores, measure, held_out.pairs)) is None
            else statistics.spearman(margins, difference)
            for measure in (REWARD, PER_TOKEN)
        }
        for model, scores in models.items()
    }
    return ByLength(
        longer_wins=float(((difference > 0) * weights).sum() / weights.sum()),
        buckets=[pair_group(name, mask, held_out, models) for name, mask in _buckets(difference)],
        better_longer=longer,
        better_shorter=shorter,
        balanced={
            model: {measure: _balanced(longer, shorter, model, measure) for measure in (REWARD, PER_TOKEN)}
            for model in models
        },
        correlation=correlation,
    )


def _group_of(name: str, mask: Masks, held_out: HeldOut, models: dict[str, Scores]) -> Group | None:
    return pair_group(name, mask, held_out, models) if mask.any() else None


def _balanced(longer: Group | None, shorter: Group | None, model: str, measure: str) -> float | None:
    if longer is None or shorter is None:
        return None
    sides = [group.models[model][measure] for group in (longer, shorter)]
    return None if None in sides else sum(side.accuracy.value for side in sides) / 2


def _buckets(difference: Floats) -> list[tuple[str, Masks]]:
    """About equally many pairs in each; pairs of one difference stay together."""
    count = max(1, min(BUCKETS, len(difference) // FEWEST))
    edges = np.unique(np.quantile(difference, np.arange(1, count) / count, method="lower"))
    places = np.searchsorted(edges, difference)
    found = []
    for place in np.unique(places):
        mask = places == place
        low, high = difference[mask].min(), difference[mask].max()
        found.append((f"{low:+.0f}" if low == high else f"{low:+.0f} to {high:+.0f}", mask))
    return found


def by_label(held_out: HeldOut, models: dict[str, Scores]) -> ByLabel | None:
    """Rewards by label; None for pairs, which have no labels."""
    if held_out.paired:
        return None
    masks = {"desirable": held_out.labels, "undesirable": ~held_out.labels}
    found: dict[str, dict[str, dict[str, Estimate | None]]] = {"desirable": {}, "undesirable": {}, "auc": {}}
    for model, scores in models.items():
        values = {REWARD: scores.reward, PER_TOKEN: scores.per_token}
        for name, mask in masks.items():
            found[name][model] = {measure: _mean_of(value, mask, held_out) for measure, value in values.items()}
        found["auc"][model] = {
            measure: None
            if value is None
            else statistics.auc(value, held_out.labels, held_out.weights, held_out.prompts)
            for measure, value in values.items()
        }
    return ByLabel({name: int(mask.sum()) for name, mask in masks.items()}, **found)


def _mean_of(values: Floats | None, mask: Masks, held_out: HeldOut) -> Estimate | None:
    weights = held_out.weights * mask
    if values is None or not weights.sum():
        return None
    return statistics.mean(values[mask], held_out.weights[mask], held_out.prompts[mask])


def divergence(held_out: HeldOut, base: Scores, tuned: Scores) -> dict[str, Estimate | None]:
    """Mean log-ratio per token of tuned and base, sum_t log p_tuned(y_t) / p_base(y_t) over all tokens, by kind.

    On tokens drawn from the tuned model this is the plain Monte Carlo estimate of its KL divergence from the base
    ("k1" in Schulman 2020, http://joschu.net/blog/kl-approx.html). Here the tokens are the dataset's, so it is not
    an estimate of that divergence: it can be negative, and measures how far likelihood moved on these completions.
    """
    ratio = (tuned.total - base.total) / np.maximum(tuned.length, 1)
    tokens = held_out.weights * tuned.length
    masks = {"better": held_out.labels, "worse": ~held_out.labels, "all": np.ones(len(ratio), bool)}
    return {
        name: statistics.mean(ratio[mask], tokens[mask], held_out.prompts[mask]) if (tokens * mask).sum() else None
        for name, mask in masks.items()
    }


TRAIN, HELD_OUT = "train", "held_out"
# -- the accuracy of surface features alone -------------------------------------------------------------------------
#
# The rule (`data.shortcut_rule`) is fitted on the training rows, with their own weights and not those of `balance`,
# since it is what a model could learn there without reading. If these are too few or a stream, it is cross-fitted on
# the held-out rows.


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
