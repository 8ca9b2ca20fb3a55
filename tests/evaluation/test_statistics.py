"""Estimates against arithmetic by hand, scipy where it is installed, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from trl_plus.evaluation import statistics
from trl_plus.evaluation.statistics import auc, effective_rows, mean, share, spearman, wilson_interval


def ones(count):
    return np.ones(count)


def test_wilson_by_hand():
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, p = 0.9, n = 10."""
    low, high = wilson_interval(0.9, 10)
    assert (low, high) == pytest.approx((0.59585, 0.98213), abs=1e-5)


def test_effective_rows():
    assert effective_rows(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rows(np.array([1.0, 1.0, 0.0])) == pytest.approx(2)
    assert effective_rows(np.array([3.0, 1.0])) == pytest.approx(1.6)


def test_a_weight_of_two_is_the_row_twice():
    won = np.array([True, False, True])
    assert share(won, np.array([2.0, 1.0, 1.0])).value == pytest.approx(0.75)
    doubled = mean(np.array([1.0, 1.0, 5.0]), ones(3), np.array([0, 0, 1]))
    weighed = mean(np.array([1.0, 5.0]), np.array([2.0, 1.0]), np.array([0, 1]))
    assert doubled == weighed


def test_the_bootstrap_of_a_mean_is_the_normal_interval_for_many_rows():
    rng = np.random.default_rng(1)
    values = rng.normal(3, 2, 4000)
    found = mean(values, ones(4000), np.arange(4000))
    half = 1.96 * values.std() / math.sqrt(4000)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.005)


def test_intervals_are_reproducible_and_seeded():
    values = np.random.default_rng(2).normal(size=50)
    assert mean(values, ones(50), np.arange(50)) == mean(values, ones(50), np.arange(50))


def test_intervals_hold_what_they_promise():
    """Of 100 samples of 60 prompts with 3 alike rows each, about 95% hold the true mean; rows drawn singly do not."""
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(60), 3)
    hits = {"prompts": 0, "rows": 0}
    for _ in range(100):
        values = np.repeat(rng.normal(size=60), 3) + 0.1 * rng.normal(size=180)
        for name, clusters in (("prompts", prompts), ("rows", np.arange(180))):
            found = mean(values, ones(180), clusters)
            hits[name] += found.low <= 0 <= found.high
    assert hits["prompts"] >= 89
    assert hits["rows"] < 85


def test_the_blocks_of_a_bootstrap_change_nothing_but_memory(monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK", 40)
    blocks = [counts.shape for counts in statistics.resampled(7)]
    assert sum(shape[0] for shape in blocks) == statistics.DRAWS
    assert {shape[1] for shape in blocks} == {7}
    assert all((counts.sum(1) == 7).all() for counts in statistics.resampled(7))


def test_too_few_rows_give_no_interval():
    one = mean(np.array([2.0]), ones(1), np.zeros(1, int))
    assert one.value == 2.0
    assert math.isnan(one.low)
    assert math.isnan(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])).value)
    assert math.isnan(spearman(np.arange(9.0), ones(9)).value)
    assert math.isnan(mean(np.array([1.0, 2.0]), np.zeros(2), np.arange(2)).value)


def test_auc_by_hand():
    """Desirable 3, 2, 1 against undesirable 2, 0: of 6 comparisons 3>2, 3>0, 2>0, 1>0 are won and 2=2 is a tie."""
    scores, labels = np.array([3.0, 2.0, 1.0, 2.0, 0.0]), np.array([True, True, True, False, False])
    assert auc(scores, labels, ones(5), np.arange(5)).value == pytest.approx(4.5 / 6)
    # the tied undesirable row twice: 3>2, 3>2, 2=2, 2=2 and 1<2, 1<2 beside the three wins over 0
    assert auc(scores, labels, np.array([1.0, 1, 1, 2, 1]), np.arange(5)).value == pytest.approx((3 + 2 + 1) / 9)


@pytest.mark.parametrize("label", [True, False])
def test_auc_of_one_label_is_undefined(label):
    assert math.isnan(auc(np.arange(4.0), np.full(4, label), ones(4), np.arange(4)).value)


def test_auc_interval_holds_the_truth():
    """Normal scores one standard deviation apart have an AUC of Phi(1/sqrt 2) = 0.7602."""
    rng = np.random.default_rng(4)
    labels = np.arange(300) % 2 == 0
    hits = 0
    for _ in range(30):
        found = auc(rng.normal(labels.astype(float)), labels, ones(300), np.arange(300))
        hits += found.low <= 0.7602 <= found.high
    assert hits >= 25


def test_spearman_by_hand_and_with_ties():
    """Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5."""
    found = spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 1.0, 2.0, 3.0]))
    assert found.value == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman(np.arange(20.0), -np.exp(np.arange(20.0))).value == pytest.approx(-1)


def test_spearman_agrees_with_scipy():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 9, 80).astype(float), rng.normal(size=80)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
