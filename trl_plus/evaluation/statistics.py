"""Estimates with 95% intervals, for rows that may be weighted and may share a prompt. Imports no torch."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trl_plus.evaluation.intervals import NORMAL_95, Estimate, wilson_interval

__all__ = ["Estimate", "auc", "effective_rows", "mean", "means", "share", "spearman", "wilson_interval"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
DRAWS, SEED = 2000, 0  # of a bootstrap
_CHUNK = 2**22  # elements of a block of draws


def effective_rows(weights: Floats) -> float:
    """(sum w)^2 / sum w^2: equally weighted rows of the same variance (Kish 1965); the count if all weigh alike."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def share(won: NDArray[np.bool_], weights: Floats) -> Estimate:
    """The weighted share of rows that are won, with Wilson's interval on the effective number of rows."""
    if not weights.sum():
        return Estimate(math.nan)
    value = float((won * weights).sum() / weights.sum())
    return Estimate(value, *wilson_interval(value, effective_rows(weights)))


def mean(values: Floats, weights: Floats, clusters: Ints) -> Estimate:
    """The weighted mean of `values`, (N,), as in `means`."""
    return means(values[:, None], weights, clusters)[0]


def means(values: Floats, weights: Floats, clusters: Ints) -> list[Estimate]:
    """Weighted means with percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13), of one set of draws.

    Args:
        values: (N, K), K quantities of the same rows.
        weights: (N,).
        clusters: (N,), which rows belong together (those of one prompt). Whole clusters are drawn, since rows of one
            prompt are not independent observations (Field and Welsh 2007).
    """
    if not weights.sum():
        return [Estimate(math.nan)] * values.shape[1]
    found = (values * weights[:, None]).sum(0) / weights.sum()
    _, own = np.unique(clusters, return_inverse=True)
    totals = np.bincount(own, weights)
    sums = np.stack([np.bincount(own, column * weights) for column in values.T], 1)
    with np.errstate(invalid="ignore"):  # a draw may hold rows of weight 0 only
        draws = [(counts @ sums) / (counts @ totals)[:, None] for counts in resampled(len(totals))]
    every = np.concatenate(draws) if draws else np.zeros((0, len(found)))
    return [_percentile(float(value), column) for value, column in zip(found, every.T, strict=True)]


def auc(scores: Floats, labels: NDArray[np.bool_], weights: Floats, clusters: Ints) -> Estimate:
    """The chance that a row of label True scores above one of label False, ties counted half (Mann and Whitney 1947).

    The interval is a percentile bootstrap over clusters, as in `mean`. NaN if one label is missing.
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive, weights = scores[order], labels[order], weights[order]
    firsts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))  # where each run of ties begins
    _, own = np.unique(clusters, return_inverse=True)
    own = own[order]

    def areas(times: Floats) -> Floats:
        """Of several weightings at once: (D, N) -> (D,)."""
        weighed = times * weights
        above = np.add.reduceat(weighed * positive, firsts, axis=1)
        below = np.add.reduceat(weighed * ~positive, firsts, axis=1)
        beaten = np.cumsum(below, axis=1) - below / 2
        with np.errstate(invalid="ignore"):  # a draw may hold one label only
            return (above * beaten).sum(1) / (above.sum(1) * below.sum(1))

    value = float(areas(np.ones((1, len(scores))))[0])
    draws = [areas(counts[:, own]) for counts in resampled(int(own.max()) + 1)]
    return _percentile(value, np.concatenate(draws) if draws else np.zeros(0))


def spearman(x: Floats, y: Floats) -> Estimate:
    """Spearman's rank correlation, ties at their mean rank, with the interval of Bonett and Wright (2000).

    The interval is that of Fisher's z with the variance (1 + r^2 / 2) / (n - 3). NaN if one side is constant.
    """
    a, b = _ranks(x), _ranks(y)
    if len(x) < 4 or not a.std() or not b.std():
        return Estimate(math.nan)
    value = float(np.corrcoef(a, b)[0, 1])
    half = NORMAL_95 * math.sqrt((1 + value**2 / 2) / (len(x) - 3))
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, value)))
    return Estimate(value, math.tanh(z - half), math.tanh(z + half))


def _ranks(values: Floats) -> Floats:
    _, own, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[own]


def resampled(clusters: int) -> Iterator[Floats]:
    """Counts of each cluster in `DRAWS` draws, in blocks of (D, clusters)."""
    rng = np.random.default_rng(SEED)
    block = max(1, min(DRAWS, _CHUNK // max(clusters, 1)))
    for start in range(0, DRAWS if clusters > 1 else 0, block):
        size = min(block, DRAWS - start)
        drawn = rng.integers(0, clusters, (size, clusters)) + clusters * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float)


def _percentile(value: float, draws: Floats) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if not len(draws) or math.isnan(value):
        return Estimate(value)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
