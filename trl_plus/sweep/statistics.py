"""Differences between the values of a sweep that hold over held-out prompts and over training seeds. Imports no torch.

Every run answers the same prompts, and every value is trained with the same seeds, so differences are paired twice. For
two values let d[s, p] be the difference of their scores with seed s on prompt p, and D its mean. Seeds and prompts are
crossed random effects: d[s, p] = delta + a[s] + b[p] + e[s, p]. The variance of D is

    var(a) / S + var(b) / P + var(e) / (S P)  <=  V_seeds + V_prompts

V_seeds is the variance of the S means of each seed, divided by S. V_prompts is the variance of D when prompts are
drawn anew (a bootstrap over prompts, with all runs and seeds of a prompt together). Each of the two contains the last
term, so their sum is never too small on average (as in Owen 2007, "The pigeonhole bootstrap").

The interval is D -+ sqrt(t(S - 1)^2 V_seeds + t(P - 1)^2 V_prompts), with the quantiles of Student's t. Its coverage is
at least nominal for any size of the two variances (Banerjee 1960: the distribution function of chi-square with one
degree of freedom is concave). With two seeds t(1) is 12.7: two seeds say little about the spread of seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist

import numpy as np

from trl_plus.evaluation.statistics import Floats, Ints, resampled

LEVEL = 0.05  # of all comparisons together
FEWEST_PROMPTS = 10  # for a verdict
_MANY = 100  # degrees of freedom from which a series in 1 / df is exact to 1e-5
_MOST_SEEDS, _MOST_PROMPTS = 30, 1_000_000  # that a sentence asks for


@dataclass(frozen=True)
class Difference:
    """The difference of two values: the first minus the second.

    Attributes:
        first, second: places of the two values.
        value: the mean difference over prompts and seeds.
        low, high: ends of its interval, at the level at which Holm's procedure tests it.
        p: the smallest level at which the interval leaves out 0, before the correction.
        seeds, prompts: how many both values share.
        by_seeds, by_prompts: V_seeds, NaN with one seed, and V_prompts.
        holds: a verdict: the difference is not 0, at LEVEL over all comparisons together.
        level: of the interval: 1 minus its nominal coverage.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    p: float
    seeds: int
    prompts: int
    by_seeds: float
    by_prompts: float
    holds: bool
    level: float


def compare(scores: Floats, weights: Floats, prompts: Ints, shares: bool) -> list[Difference]:
    """The difference of every two values, corrected for their number by Holm's procedure (Holm 1979).

    Args:
        scores: (K, S, N), of K values, S seeds and N held-out rows; a run that is missing is NaN throughout.
        weights: (N,).
        prompts: (N,), rows of one number share a prompt. Whole prompts are drawn.
        shares: scores are 0 or 1. Their variance is never taken as 0: as if each of the two had won one more prompt,
            of half a weight (Agresti and Min 2005).
    """
    pairs = list(combinations(range(len(scores)), 2))
    _, own = np.unique(prompts, return_inverse=True)
    totals = np.bincount(own, weights)
    known = ~np.isnan(scores).any(2)
    columns, by_seed = [], []
    for first, second in pairs:
        both = known[first] & known[second]
        difference = scores[first, both] - scores[second, both]  # (seeds, N)
        sums = np.stack([np.bincount(own, row * weights) for row in difference]) if both.any() else None
        by_seed.append(np.zeros(0) if sums is None else sums.sum(1) / totals.sum())
        columns.append(np.zeros(len(totals)) if sums is None else sums.mean(0))
    spread = _variance_over_prompts(np.stack(columns, 1), totals) if pairs else np.zeros(0)
    least = 1 / len(totals) ** 2 if shares else 0.0
    found = []
    for (first, second), means, variance in zip(pairs, by_seed, spread, strict=True):
        seeds, value = len(means), float(means.mean()) if len(means) else math.nan
        by_seeds = float(means.var(ddof=1)) / seeds if seeds > 1 else math.nan
        parts = (value, seeds, len(totals), by_seeds, float(variance) + least)
        found.append((first, second, *parts, _level_of(*parts)))
    return _corrected(found)


def _variance_over_prompts(columns: Floats, totals: Floats) -> Floats:
    """(M,): the variance of M weighted means when prompts are drawn anew. Columns are (prompts, M) weighted sums."""
    if len(totals) < 2:
        return np.full(columns.shape[1], math.inf)
    with np.errstate(invalid="ignore"):  # a draw may hold rows of weight 0 only
        draws = np.concatenate([(counts @ columns) / (counts @ totals)[:, None] for counts in resampled(len(totals))])
    kept: Floats = np.nanvar(draws, axis=0, ddof=1) * len(totals) / (len(totals) - 1)
    return kept


def _corrected(found: Sequence[tuple]) -> list[Difference]:
    """Holm's procedure: the smallest p is tested at LEVEL / M, the next at LEVEL / (M - 1), until one does not hold."""
    order, stopped, level, done = sorted(range(len(found)), key=lambda at: found[at][-1]), False, LEVEL, {}
    for rank, at in enumerate(order):
        if not stopped:  # those after the first that does not hold are not tested: they have its level
            level = LEVEL / (len(found) - rank)
        first, second, value, seeds, prompts, by_seeds, by_prompts, p = found[at]
        holds = not stopped and p <= level and prompts >= FEWEST_PROMPTS
        stopped = stopped or not holds
        half = half_width(level, seeds, prompts, by_seeds, by_prompts)
        ends = (value - half, value + half)
        done[at] = Difference(first, second, value, *ends, p, seeds, prompts, by_seeds, by_prompts, holds, level)
    return [done[at] for at in range(len(found))]


def half_width(level: float, seeds: int, prompts: int, by_seeds: float, by_prompts: float) -> float:
    """Half of the interval's width; with one seed over prompts only, which no verdict is taken from."""
    if not seeds or prompts < 2:
        return math.inf
    over_prompts = quantile(level, prompts - 1) ** 2 * by_prompts
    return math.sqrt(over_prompts + (quantile(level, seeds - 1) ** 2 * by_seeds if seeds > 1 else 0.0))


def _level_of(value: float, seeds: int, prompts: int, by_seeds: float, by_prompts: float) -> float:
    """The level at which the interval just reaches 0, found by bisection; 1 with one seed, which shows nothing."""
    if seeds < 2 or value == 0 or math.isnan(value) or prompts < 2:
        return 1.0
    low, high = -30.0, 0.0  # of its logarithm
    for _ in range(40):
        middle = (low + high) / 2
        if half_width(math.exp(middle), seeds, prompts, by_seeds, by_prompts) > abs(value):
            low = middle
        else:
            high = middle
    return math.exp(high)


# -- what would be needed -----------------------------------------------------------------------------------------


def prompts_needed(found: Difference) -> int | None:
    """Held-out prompts with which a difference of this size would show; None if these seeds show none on any number."""
    if found.seeds < 2 or not found.value:
        return None
    left = found.value**2 - quantile(found.level, found.seeds - 1) ** 2 * found.by_seeds
    if left <= 0:
        return None
    needed = max(FEWEST_PROMPTS, math.ceil(NormalDist().inv_cdf(1 - found.level / 2) ** 2 * _of_one(found) / left))
    return needed if needed <= _MOST_PROMPTS else None


def seeds_needed(found: Difference, prompts: int | None = None) -> int | None:
    """Seeds with which a difference of this size would show on so many prompts (None for those there are)."""
    if found.seeds < 2 or not found.value:
        return None
    over_prompts = _of_one(found) / (prompts or found.prompts)
    for seeds in range(found.seeds + 1, _MOST_SEEDS + 1):
        by_seeds = found.by_seeds * found.seeds / seeds
        if half_width(found.level, seeds, prompts or found.prompts, by_seeds, over_prompts) < abs(found.value):
            return seeds
    return None


def _of_one(found: Difference) -> float:
    """The variance over prompts that one prompt would have."""
    return found.by_prompts * found.prompts


# -- Student's t --------------------------------------------------------------------------------------------------


@lru_cache(4096)
def quantile(level: float, freedom: int) -> float:
    """The value that |t| with integer degrees of freedom exceeds with probability `level`.

    >>> round(quantile(0.05, 1), 2)
    12.71
    """
    z = -NormalDist().inv_cdf(level / 2)
    if freedom >= _MANY:  # Abramowitz and Stegun 26.7.5
        nu = freedom
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + first / nu + second / nu**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(nu)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _outside(angle: float, freedom: int) -> float:
    """P(|t| > sqrt(nu) tan(angle)) (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for index in range(2 + odd, freedom, 2):
        term *= cosine**2 * (index - 1) / index
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 1 - inside
