"""Losses worked out by hand on numbers small enough to follow."""

import math

import pytest
import torch

from trl_plus import objectives as O


def one(*logps, ref=None):
    """One completion whose tokens have these log-probabilities."""
    return O.Completions(
        torch.tensor([logps], dtype=torch.float64),
        torch.ones(1, len(logps)),
        None if ref is None else torch.tensor([float(ref)], dtype=torch.float64),
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_dpo():
    # c = -3 - (-4) = 1, r = -2 - (-1) = -1, beta d = 0.5 * 2 = 1
    loss = O.dpo(one(-1, -2, ref=-4), one(-2, ref=-1), beta=0.5)
    assert loss.item() == pytest.approx(-math.log(sigmoid(1)))


def test_dpo_is_ln2_where_policy_is_reference():
    assert O.dpo(one(-1, -2, ref=-3), one(-2, ref=-2), beta=0.7).item() == pytest.approx(math.log(2))


def test_ipo_divides_by_length_or_not():
    # c = 1 over 2 tokens, r = -1 over 1 token; 1 / (2 beta) = 1
    chosen, rejected = one(-1, -2, ref=-4), one(-2, ref=-1)
    assert O.ipo(chosen, rejected, beta=0.5).item() == pytest.approx((0.5 + 1 - 1) ** 2)
    assert O.ipo(chosen, rejected, beta=0.5, reduction="sum").item() == pytest.approx((2 - 1) ** 2)


def test_simpo():
    # Mw = -1.5, Ml = -2, beta (Mw - Ml) - gamma = 2 * 0.5 - 0.5
    assert O.simpo(one(-1, -2), one(-2), beta=2.0, gamma=0.5).item() == pytest.approx(-math.log(sigmoid(0.5)))


def test_odpo():
    """The margin of a pair is what its reward difference must exceed (Amini et al. 2024)."""
    # beta d = 1 as above; 0.4 of it is asked for
    chosen, rejected, margin = one(-1, -2, ref=-4), one(-2, ref=-1), torch.tensor([0.4])
    assert O.dpo(chosen, rejected, beta=0.5, margin=margin).item() == pytest.approx(-math.log(sigmoid(0.6)))
    smoothed = O.dpo(chosen, rejected, beta=0.5, label_smoothing=0.1, margin=margin).item()
    assert smoothed == pytest.approx(-0.9 * math.log(sigmoid(0.6)) - 0.1 * math.log(sigmoid(-0.6)))


def test_simpo_adds_the_margin_to_gamma():
    chosen, rejected, margin = one(-1, -2), one(-2), torch.tensor([0.2])
    loss = O.simpo(chosen, rejected, beta=2.0, gamma=0.5, margin=margin)
    assert loss.item() == pytest.approx(-math.log(sigmoid(1 - 0.5 - 0.2)))
    hinge = O.simpo(chosen, rejected, beta=2.0, gamma=0.5, margin=margin, loss_type="hinge")
    assert hinge.item() == pytest.approx(1 - 0.3)


def test_orpo_odds_are_faithful():
    """The odds must be those of the length-normalised likelihood, p / (1 - p)."""
    # exp(Mw) = 0.5 has odds 1, exp(Ml) = 0.2 has odds 0.25: the odds ratio is 4
    chosen, rejected = one(math.log(0.25), 0.0), one(math.log(0.2))
    assert O.log_odds_ratio(chosen, rejected).item() == pytest.approx(math.log(4))
    assert O.odds_ratio(chosen, rejected, beta=0.1).item() == pytest.approx(-0.1 * math.log(4 / 5))


def test_orpo_token_odds():
    # odds of the tokens: 1 and 0.25 against 0.25; the mean of logs is ln(0.5)
    chosen, rejected = one(math.log(0.5), math.log(0.2)), one(math.log(0.2))
    assert O.log_odds_ratio(chosen, rejected, odds="token").item() == pytest.approx(math.log(0.5) - math.log(0.25))


def test_log_odds_at_certainty_is_the_documented_clamp():
    eps = torch.finfo(torch.float32).eps
    log_p = torch.zeros(1, requires_grad=True)
    value = O.log_odds(log_p)
    value.backward()
    assert value.item() == pytest.approx(-math.log(eps), rel=1e-6)
    assert log_p.grad.item() == 1.0


def test_kto_signs_and_weights():
    # ratios 2 and -1, z_ref 0.5, beta 1
    rows = O.Completions(torch.tensor([[-1.0], [-3.0]]), torch.ones(2, 1), torch.tensor([-3.0, -2.0]))
    loss = O.kto(rows, torch.tensor([True, False]), torch.tensor(0.5), beta=1.0, undesirable_weight=2.0)
    assert loss.tolist() == pytest.approx([1 - sigmoid(1.5), 2 * (1 - sigmoid(1.5))])


def test_z_ref_is_never_negative_and_never_divides_by_zero():
    assert O.reference_point(torch.tensor(-4.0), torch.tensor(2.0)).item() == 0.0
    assert O.reference_point(torch.tensor(3.0), torch.tensor(2.0)).item() == 1.5
    assert O.reference_point(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0
