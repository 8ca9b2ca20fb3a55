"""How far surface features alone tell the preferred side: a logistic regression that has read nothing.

**Rule.** A pair is the difference of the features (`preflight.surface`) of its two sides, preferred minus other. The
rule is a logistic regression without intercept on differences, so it has no side: minimise

    sum_i w_i log(1 + exp(-y_i b.x_i)) + ridge / 2 |b|^2,      y_i = 1

over differences that are divided by their root mean square and clipped to +-4. Labelled rows are the features
themselves, centred, with y_i = +-1 and an intercept without penalty; both labels weigh the same in all.

**Accuracy.** Prompts are drawn into five folds. Each row is judged by the rule fitted on the other folds, so no row
and no other row of its prompt is known to its judge. Three draws are made, and a row's score is the mean. Accuracy is the weighted share of rows judged right, a tie counted
half; of labelled rows the mean of the shares of both labels. Labels that are flipped at random therefore have a mean
accuracy of 0.5 exactly for pairs.

**Interval.** Wilson's 95% interval, two-sided, on an effective number of rows. Under independent prompts this is
p (1 - p) / v, with v the variance of the share from the sums of residuals of each prompt, and at most Kish's number.
Judges of different folds share rows, so accuracies of label shuffles scatter about `SPREAD` times as wide as those of
independent judges (benchmarks/shortcuts.py measures it); the number is divided by the square of that.

**Finding.** A shortcut is found if the lower end lies above 0.5 and the accuracy is at least `WORTH`.

**Balance.** `balance` finds row weights w_i proportional to exp(-l.x_i), those nearest to uniform in entropy
(Hainmueller 2012), under which the weighted mean of each evened feature is 0. At these weights the gradient of the loss
above is 0 at b = 0: the regression finds nothing in these features.

Imports only numpy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trl_plus.evaluation.intervals import Estimate, wilson_interval
from trl_plus.preflight.surface import FEATURES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Masks = NDArray[np.bool_]

ROWS, PROMPTS = 200, 100  # fewer say little about so many features
MOST = 20_000  # rows from which more make the interval no narrower than 0.014
SPREAD = 1.25  # of accuracies under label shuffles, as a multiple of that of independent judges
WORTH, STRONG = 0.6, 0.65  # accuracies from which a shortcut is reported, and warned of
BINS = 24  # of the histogram of scores
FOLDS, DRAWS, SEED = 5, 3, 0
RIDGE, CLIP = 10.0, 4.0
CAP = 20.0  # a balanced row weighs at most so many times, and at least one so-manieth, of what it weighed
SIZE = np.array([feature.size for feature in FEATURES])
_STEPS, _CLOSE = 50, 1e-7


@dataclass(frozen=True)
class Examples:
    """N rows as a rule sees them.

    Attributes:
        x: (N, F), differences of pairs, preferred minus other; of labelled rows their features.
        y: (N,), 1, and -1 of labelled rows that are not wanted.
        weights: (N,), at least 0.
        prompts: (N,), rows of one number share a prompt.
        paired: x are differences.
    """

    x: Floats
    y: Floats
    weights: Floats
    prompts: Ints
    paired: bool

    def select(self, rows: Masks | Ints) -> "Examples":
        return Examples(self.x[rows], self.y[rows], self.weights[rows], self.prompts[rows], self.paired)

    @property
    def even(self) -> Floats:
        """(N,): the weights; of labelled rows so that both labels weigh the same in all."""
        if self.paired:
            return self.weights
        sums = {sign: max(float(self.weights[self.y == sign].sum()), 1e-300) for sign in (-1, 1)}
        return self.weights * np.where(self.y > 0, 1 / sums[1], 1 / sums[-1]) * self.weights.sum() / 2


@dataclass(frozen=True)
class Rule:
    """A fitted regression. `score` is the log-odds of the preferred side.

    Attributes:
        centre, scale, slope: (F,); features that do not vary have the slope 0.
    """

    centre: Floats
    scale: Floats
    slope: Floats
    intercept: float = 0.0

    def parts(self, x: Floats) -> Floats:
        """(N, F): what each feature adds to the score."""
        return np.clip((x - self.centre) / self.scale, -CLIP, CLIP) * self.slope

    def score(self, x: Floats) -> Floats:
        """(N,)"""
        return self.parts(x).sum(1) + self.intercept


@dataclass(frozen=True)
class Trait:
    """What the rule makes of one feature, or of all features of length together ("length").

    Attributes:
        weight: standard deviation of what it adds to the log-odds; negative if less is preferred.
        alone: weighted share of pairs whose preferred side has more of it, ties counted half; of labelled rows the
            chance that a wanted one has more than another.
    """

    name: str
    words: str
    weight: float
    alone: float


@dataclass(frozen=True)
class Wrong:
    """A row that the rule judges wrong: its place among the rows looked at, and which features mislead it, in words."""

    row: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Shortcut:
    """What surface features alone reach.

    Attributes:
        rows, prompts: looked at.
        accuracy: cross-fitted, with its interval.
        length, other: the same by features of length only, and by all others only.
        wrong: rows that are judged wrong.
        traits: the strongest first.
        examples: rows that are judged wrong with most confidence.
        edges, counts: histogram of the cross-fitted scores (log-odds of the preferred side; of labelled rows of the
            label that the row has): below 0 the rule is wrong. The outer bins hold what lies beyond.
    """

    rows: int
    prompts: int
    accuracy: Estimate
    length: Estimate
    other: Estimate
    wrong: int
    traits: tuple[Trait, ...]
    examples: tuple[Wrong, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    paired: bool

    @property
    def found(self) -> bool:
        """Surface features tell the preferred side better than chance, and by more than a little."""
        return worth(self.accuracy)

    @property
    def strong(self) -> bool:
        return self.found and self.accuracy.value >= STRONG

    @property
    def length_only(self) -> bool:
        """The features that are not of length would not be reported by themselves."""
        return not worth(self.other)


def worth(accuracy: Estimate) -> bool:
    """Whether an accuracy is above chance, and by more than a little."""
    return accuracy.low > 0.5 and accuracy.value >= WORTH


# -- the regression -------------------------------------------------------------------------------------------------


def fit(examples: Examples, columns: Masks | None = None) -> Rule:
    """The rule of some rows.

    Args:
        columns: (F,), the features it may use; None for all.
    """
    x, weights = examples.x, examples.even
    total = max(float(weights.sum()), 1e-300)
    centre = np.zeros(x.shape[1]) if examples.paired else weights @ x / total
    scale = np.sqrt(np.maximum(weights @ (x - centre) ** 2 / total, 0))
    used = scale > 1e-6 if columns is None else (scale > 1e-6) & columns
    scale = np.where(scale > 1e-6, scale, 1.0)
    standard = np.clip((x[:, used] - centre[used]) / scale[used], -CLIP, CLIP)
    slope = np.zeros(x.shape[1])
    found = _minimum(standard, examples.y, weights * len(x) / total, not examples.paired)
    slope[used] = found[: used.sum()]
    return Rule(centre, scale, slope, 0.0 if examples.paired else float(found[-1]))


def _minimum(x: Floats, y: Floats, weights: Floats, intercept: bool) -> Floats:
    """Newton's method with halved steps; the intercept, if there is one, comes last."""
    if intercept:
        x = np.column_stack([x, np.ones(len(x))])
    penalty = np.full(x.shape[1], RIDGE)
    penalty[len(penalty) - intercept :] = 1e-6
    signed, found = x * y[:, None], np.zeros(x.shape[1])

    def loss(at: Floats) -> float:
        return float(weights @ np.logaddexp(0, -(signed @ at)) + penalty @ at**2 / 2)

    now = loss(found)
    for _ in range(_STEPS):
        wrong = 1 / (1 + np.exp(np.minimum(signed @ found, 500)))
        gradient = penalty * found - signed.T @ (weights * wrong)
        curve = (x * (weights * wrong * (1 - wrong))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curve, gradient)
        while (then := loss(found - step)) > now + 1e-12 * abs(now):
            step = step / 2
        found, gain, now = found - step, now - then, then
        if gain <= _CLOSE * max(abs(now), 1):
            break
    return found


def cross_fitted(examples: Examples, columns: Masks | None = None) -> Floats:
    """(N,): the mean score of each row by the rules of the folds that its prompt is not in, over `DRAWS` draws."""
    names, own = np.unique(examples.prompts, return_inverse=True)
    rng = np.random.default_rng(SEED)
    scores = np.zeros(len(examples.y))
    for _ in range(DRAWS):
        fold = (rng.permutation(len(names)) % FOLDS)[own]
        for number in range(FOLDS):
            judged = fold == number
            if judged.any() and not judged.all():
                scores[judged] += fit(examples.select(~judged), columns).score(examples.x[judged]) / DRAWS
    return scores


def right(scores: Floats, examples: Examples) -> Floats:
    """(N,): 1 for a row that is judged right, 0.5 for one without a verdict, 0 for one that is judged wrong."""
    signed = scores * examples.y
    return (signed > 0) + 0.5 * (signed == 0)


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
    """What the rule reaches on some rows; None for too few rows or prompts, or a single label.

    Args:
        shown: examples of rows that are judged wrong.
    """
    kept = np.flatnonzero(examples.weights > 0)
    if len(kept) > MOST:
        kept = np.sort(np.random.default_rng(SEED).choice(kept, MOST, replace=False))
    some = examples.select(kept)
    prompts = len(np.unique(some.prompts))
    if len(kept) < ROWS or prompts < PROMPTS or not (some.paired or 0 < (some.y > 0).sum() < len(kept)):
        return None
    scores = cross_fitted(some)
    hits = right(scores, some)
    rule = fit(some)
    edges, counts = _histogram(scores * some.y)
    return Shortcut(
        rows=len(kept),
        prompts=prompts,
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
    """What the side, or row, that the rule wrongly prefers or refuses has, by what it adds."""
    parts = rule.parts(examples.x[place : place + 1])[0] * examples.y[place]
    centred = examples.x[place] - rule.centre
    size = float(parts[SIZE].sum())
    found = [(size, "is longer" if centred[SIZE].sum() * (-1 if examples.paired else 1) > 0 else "is shorter")]
    for feature, part, value in zip(FEATURES, parts, centred, strict=True):
        if not feature.size:
            found.append((float(part), feature.more if value * (-1 if examples.paired else 1) > 0 else feature.less))
    return tuple(words for part, words in sorted(found)[:3] if part < -0.05)


def of_pairs(features: NDArray[np.floating], prompts: Ints, weights: Floats | None = None) -> Examples:
    """Examples of pairs from features, (N, 2, F), the preferred side first."""
    x = features[:, 0].astype(float) - features[:, 1].astype(float)
    return Examples(x, np.ones(len(x)), np.ones(len(x)) if weights is None else weights, prompts, True)


def of_labels(features: NDArray[np.floating], labels: Masks, prompts: Ints, weights: Floats | None = None) -> Examples:
    """Examples of labelled rows from features, (N, F)."""
    count = len(features)
    signs = np.where(labels, 1.0, -1.0)
    return Examples(features.astype(float), signs, np.ones(count) if weights is None else weights, prompts, False)
