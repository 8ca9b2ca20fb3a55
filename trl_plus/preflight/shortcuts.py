"""How far surface features alone tell the preferred side: the audit of a split.

**Accuracy** is the weighted share of rows that the cross-fitted rule (`data.shortcut_rule`) judges right, a tie counted
half; of labelled rows the mean of the shares of both labels. Labels of pairs that are flipped at random therefore have
a mean accuracy of 0.5 exactly.

**Interval.** Wilson's 95% interval, two-sided, on an effective number of rows. Under independent prompts this is
p (1 - p) / v, with v the variance of the share from the sums of residuals of each prompt, and at most Kish's number.
Judges of different folds share rows, so accuracies of label shuffles scatter about `SPREAD` times as wide as those of
independent judges (benchmarks/shortcuts.py measures it); the number is divided by the square of that.

**Finding.** A shortcut is found if the lower end lies above 0.5 and the accuracy is at least `findings.WORTH`.

Imports only numpy.
"""

import numpy as np

from trl_plus.data.shortcut_rule import SEED, SIZE, Examples, Floats, Ints, Rule, cross_fitted, fit, right
from trl_plus.data.surface import FEATURES
from trl_plus.evaluation.intervals import Estimate, wilson_interval
from trl_plus.preflight.findings import Shortcut, Trait, Wrong

MOST = 20_000  # rows from which more make the interval no narrower than 0.02
SPREAD = 1.25  # of accuracies under label shuffles, as a multiple of that of independent judges
BINS = 24  # of the histogram of scores


def accuracy(hits: Floats, examples: Examples, spread: float = SPREAD) -> Estimate:
    """The share judged right with its interval.

    Args:
        spread: by how much the interval is wider than that of independent judges; 1 for a judge that was fitted on
            other rows.
    """
    weights, groups = examples.even, [examples.y == sign for sign in (-1, 1)]
    total = float(weights.sum())
    if not total:
        return Estimate(np.nan)
    value = min(max(float(weights @ hits / total), 0.0), 1.0)
    residual = np.zeros(len(hits))
    for mask in groups:
        if weights[mask].sum():
            residual[mask] = weights[mask] * (hits[mask] - weights[mask] @ hits[mask] / weights[mask].sum())
    _, own = np.unique(examples.prompts, return_inverse=True)
    sums, held = np.bincount(own, residual), np.bincount(own, weights)
    prompts = total**2 / float((held**2).sum())  # Kish 1965
    variance = float((sums**2).sum()) / total**2 * (1 + 1 / max(len(sums) - 1, 1))
    most = total**2 / float((weights**2).sum())
    rows = min(value * (1 - value) / variance, most) if variance > 1e-12 and 0 < value < 1 else prompts
    return Estimate(value, *wilson_interval(value, rows / spread**2))


# -- the audit ------------------------------------------------------------------------------------------------------


def audit(examples: Examples, shown: int = 3) -> Shortcut | None:
    """The accuracy of the rule on some rows; None for too few rows or prompts, or a single label.

    Args:
        shown: examples of rows that are judged wrong.
    """
    kept = np.flatnonzero(examples.weights > 0)
    if len(kept) > MOST:
        kept = np.sort(np.random.default_rng(SEED).choice(kept, MOST, replace=False))
    some = examples.select(kept)
    if not some.enough:
        return None
    scores = cross_fitted(some)
    hits = right(scores, some)
    rule = fit(some)
    edges, counts = _histogram(scores * some.y)
    return Shortcut(
        rows=len(kept),
        prompts=len(np.unique(some.prompts)),
        accuracy=accuracy(hits, some),
        length=accuracy(right(cross_fitted(some, SIZE), some), some),
        other=accuracy(right(cross_fitted(some, ~SIZE), some), some),
        wrong=int((hits == 0).sum()),
        traits=_traits(rule, some),
        examples=_examples(rule, some, scores, kept, shown),
        edges=edges,
        counts=counts,
        paired=some.paired,
    )


def _histogram(scores: Floats) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Equal bins with an edge at 0, as wide as to hold 98% of the scores in the inner ones."""
    reach = max(float(np.quantile(np.abs(scores), 0.98)), 1e-6)
    edges = np.linspace(-reach, reach, BINS + 1)
    counts, _ = np.histogram(np.clip(scores, -reach, reach), edges)
    return tuple(edges.round(6).tolist()), tuple(counts.tolist())


def _traits(rule: Rule, examples: Examples) -> tuple[Trait, ...]:
    """Features of length say nearly the same and share their weight, so they stand as one."""
    parts, weights = rule.parts(examples.x), examples.even / examples.even.sum()
    measured = examples.x * (examples.y[:, None] if examples.paired else 1)
    found = []
    if rule.slope[SIZE].any():
        mean_size = ((examples.x - rule.centre) / rule.scale)[:, SIZE & (rule.slope != 0)].mean(1)
        together = parts[:, SIZE].sum(1)
        sign = 1.0 if _sum(weights, together * mean_size, examples.paired, mean_size, together) >= 0 else -1.0
        words = "is longer" if sign > 0 else "is shorter"
        found.append(Trait("length", words, sign * _spread(together, weights, examples.paired),
                           _alone(mean_size, examples)))  # fmt: skip
    for place in np.flatnonzero((rule.slope != 0) & ~SIZE):
        feature, slope = FEATURES[place], rule.slope[place]
        spread = _spread(parts[:, place], weights, examples.paired)
        found.append(Trait(feature.name, feature.more if slope > 0 else feature.less,
                           float(np.copysign(spread, slope)), _alone(measured[:, place], examples)))  # fmt: skip
    return tuple(sorted(found, key=lambda trait: -abs(trait.weight)))


def _sum(weights: Floats, product: Floats, paired: bool, one: Floats, other: Floats) -> float:
    """The weighted covariance; of differences about 0."""
    mean = float(weights @ product)
    return mean if paired else mean - float(weights @ one) * float(weights @ other)


def _spread(values: Floats, weights: Floats, paired: bool) -> float:
    middle = 0.0 if paired else float(weights @ values)
    return float(np.sqrt(max(weights @ (values - middle) ** 2, 0)))


def _alone(values: Floats, examples: Examples) -> float:
    weights = examples.weights
    if examples.paired:
        return float(weights @ ((values > 0) + 0.5 * (values == 0)) / weights.sum())
    order = np.argsort(values, kind="stable")
    _, run = np.unique(values[order], return_inverse=True)
    wanted = np.bincount(run, (weights * (examples.y > 0))[order])
    others = np.bincount(run, (weights * (examples.y < 0))[order])
    below = np.cumsum(others) - others / 2
    return float(wanted @ below / (wanted.sum() * others.sum()))


def _examples(rule: Rule, examples: Examples, scores: Floats, kept: Ints, shown: int) -> tuple[Wrong, ...]:
    signed = scores * examples.y
    worst = np.argsort(signed, kind="stable")[:shown]
    return tuple(
        Wrong(int(kept[place]), _misleading(rule, examples, int(place))) for place in worst if signed[place] < 0
    )


def _misleading(rule: Rule, examples: Examples, place: int) -> tuple[str, ...]:
    """The features of the side, or row, that the rule wrongly prefers or refuses, by what they add."""
    parts = rule.parts(examples.x[place : place + 1])[0] * examples.y[place]
    centred = examples.x[place] - rule.centre
    size = float(parts[SIZE].sum())
    found = [(size, "is longer" if centred[SIZE].sum() * (-1 if examples.paired else 1) > 0 else "is shorter")]
    for feature, part, value in zip(FEATURES, parts, centred, strict=True):
        if not feature.size:
            found.append((float(part), feature.more if value * (-1 if examples.paired else 1) > 0 else feature.less))
    return tuple(words for part, words in sorted(found)[:3] if part < -0.05)
