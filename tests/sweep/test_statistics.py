"""Differences between values: by hand, under no difference, and with a planted one. Nothing here trains."""

import math

import numpy as np
import pytest
from scipy import stats

from trl_plus.sweep import statistics
from trl_plus.sweep.results import no_verdict, points
from trl_plus.sweep.statistics import compare, prompts_needed, quantile, seeds_needed


@pytest.mark.parametrize("level", [0.05, 0.05 / 3, 1e-3, 1e-6])
@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 99, 100, 159, 5000])
def test_quantiles_are_those_of_scipy(level, freedom):
    assert quantile(level, freedom) == pytest.approx(stats.t.isf(level / 2, freedom), rel=1e-5)


def no_difference(rng, values, seeds, prompts, spread):
    """(K, S, N) of won prompts: each seed of each value shifts all prompts at once, and each run flips some."""
    strength = 0.8 + rng.normal(0, 1, prompts) + rng.normal(0, 0.4, (values, 1, prompts))
    runs = spread * rng.normal(0, 1, (values, seeds, 1)) + rng.normal(0, 0.5, (values, seeds, prompts))
    return strength + runs


def compared(scores):
    prompts = scores.shape[-1]
    return compare((scores > 0).astype(float), np.ones(prompts), np.arange(prompts), shares=True)


@pytest.mark.parametrize(
    "values, seeds, spread, sweeps", [(2, 2, 0.3, 200), (2, 3, 0.1, 200), (3, 3, 0.3, 67), (4, 5, 0.2, 34)]
)
def test_at_most_5_percent_of_sweeps_without_a_difference_have_a_verdict(values, seeds, spread, sweeps):
    rng = np.random.default_rng(7)
    wrong = sum(any(d.holds for d in compared(no_difference(rng, values, seeds, 60, spread))) for _ in range(sweeps))
    assert wrong <= 0.05 * sweeps


def test_prompts_alone_would_call_seeds_a_difference():
    """The test above can fail: an interval over prompts only, on one seed each, holds far too often."""
    rng, wrong = np.random.default_rng(7), 0
    for _ in range(100):
        found = compared(no_difference(rng, 2, 1, 60, 0.5))[0]
        wrong += found.low > 0 or found.high < 0
        assert not found.holds  # one seed is no verdict
    assert wrong > 10


def test_a_planted_better_value_is_found():
    rng, found = np.random.default_rng(3), 0
    for _ in range(20):
        scores = no_difference(rng, 3, 3, 200, 0.03)
        scores[2] += 1.2
        holds = {(d.first, d.second): d.value for d in compared(scores) if d.holds}
        assert all(value < 0 and 2 in pair for pair, value in holds.items())
        found += len(holds) == 2
    assert found >= 16


def test_by_hand():
    """Two values, two seeds, 100 prompts: D, V_seeds and V_prompts are sums that can be done on paper."""
    scores = np.zeros((2, 2, 100))
    scores[0, 0, :30], scores[0, 1, :20] = 1, 1  # the means of the seeds are 0.3 and 0.2
    found = compare(scores, np.ones(100), np.arange(100), shares=False)[0]
    assert found.value == pytest.approx(0.25)
    assert found.by_seeds == pytest.approx(0.005 / 2)  # variance of 0.3 and 0.2 over two
    mean = np.repeat([1, 0.5, 0], [20, 10, 70])
    assert found.by_prompts == pytest.approx(mean.var(ddof=1) / 100, rel=0.05)
    half = math.sqrt(12.7062**2 * found.by_seeds + 1.98422**2 * found.by_prompts)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-4)
    assert not found.holds


def test_pairs_of_one_prompt_are_drawn_together():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.integers(0, 2, (2, 3, 50)), 4, axis=2).astype(float)
    alone = compare(scores, np.ones(200), np.arange(200), shares=False)[0]
    together = compare(scores, np.ones(200), np.repeat(np.arange(50), 4), shares=False)[0]
    assert together.by_prompts == pytest.approx(4 * alone.by_prompts, rel=0.15)
    assert together.prompts == 50


def test_holm_tests_the_second_at_a_half():
    found = compared(np.stack([no_difference(np.random.default_rng(1), 1, 4, 200, 0.0)[0] + add for add in (0, 0, 3)]))
    levels = sorted(d.level for d in found)
    assert levels[0] == pytest.approx(0.05 / 3)
    assert levels[1] == pytest.approx(0.05 / 2)


def test_a_missing_run_leaves_the_seeds_that_both_have():
    scores = np.random.default_rng(0).integers(0, 2, (2, 3, 40)).astype(float)
    scores[1, 0] = np.nan
    found = compare(scores, np.ones(40), np.arange(40), shares=True)[0]
    assert found.seeds == 2
    assert found.value == pytest.approx((scores[0, 1:] - scores[1, 1:]).mean())
    scores[1] = np.nan
    found = compare(scores, np.ones(40), np.arange(40), shares=True)[0]
    assert math.isnan(found.value)
    assert not found.holds


def test_few_prompts_are_no_verdict():
    scores = np.zeros((2, 3, 5))
    scores[0] = 1
    assert not compare(scores, np.ones(5), np.arange(5), shares=True)[0].holds


def test_what_would_be_needed_shows_the_difference():
    def made(prompts, seeds):
        found = statistics.Difference(0, 1, 0.05, 0, 0, 0.2, seeds, prompts, 2e-4 / seeds, 0.2 / prompts, False, 0.05)
        return found, statistics.half_width(0.05, seeds, prompts, found.by_seeds, found.by_prompts)

    found, half = made(100, 5)
    assert half > 0.05
    needed = prompts_needed(found)
    assert made(needed, 5)[1] <= 0.0505 < made(int(needed * 0.9), 5)[1]
    assert "more held-out prompts would be needed" in no_verdict(found)
    found = made(1000, 2)[0]  # t(1) is too large for any number of prompts
    assert prompts_needed(found) is None
    seeds = seeds_needed(found)
    assert made(1000, seeds)[1] <= 0.05 < made(1000, seeds - 1)[1]
    assert f"about {seeds - 2} more seed" in no_verdict(found)


def test_points():
    assert points(0.031, 0.0949) == "3 to 9 points"
    assert points(0.002, 0.0949) == "0.2 to 9.5 points"
