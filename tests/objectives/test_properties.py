"""What must hold for every objective and every input: finite, blind to padding and masked positions, row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_plus import objectives as O

PAIRED = {
    "dpo": lambda c, r: O.dpo(c, r, beta=0.1),
    "cdpo": lambda c, r: O.dpo(c, r, beta=0.1, label_smoothing=0.1),
    "odpo": lambda c, r: O.dpo(c, r, beta=0.1, margin=torch.full((len(c.logps),), 0.7)),
    "robust": lambda c, r: O.robust(c, r, beta=0.1, label_smoothing=0.1),
    "ipo": lambda c, r: O.ipo(c, r, beta=0.1),
    "ipo_sum": lambda c, r: O.ipo(c, r, beta=0.1, reduction="sum"),
    "hinge": lambda c, r: O.hinge(c, r, beta=0.1),
    "dpo_norm": lambda c, r: O.dpo_norm(c, r, beta=0.1),
    "apo_zero": lambda c, r: O.apo_zero(c, r, beta=0.1),
    "apo_down": lambda c, r: O.apo_down(c, r, beta=0.1),
    "simpo": lambda c, r: O.simpo(c, r, beta=2.0, gamma=1.0),
    "simpo_hinge": lambda c, r: O.simpo(c, r, beta=2.0, gamma=1.0, loss_type="hinge"),
    "simpo_margin": lambda c, r: O.simpo(c, r, beta=2.0, gamma=1.0, margin=torch.full((len(c.logps),), -0.7)),
    "cpo": lambda c, r: O.cpo(c, r, beta=0.1),
    "cpo_hinge": lambda c, r: O.cpo(c, r, beta=0.1, loss_type="hinge"),
    "cpo_ipo": lambda c, r: O.cpo(c, r, beta=0.1, loss_type="ipo"),
    "orpo": lambda c, r: O.odds_ratio(c, r, beta=0.1),
    "orpo_token": lambda c, r: O.odds_ratio(c, r, beta=0.1, odds="token"),
    "exo_pair": lambda c, r: O.exo_pair(c, r, beta=0.1, label_smoothing=1e-3),
    "nca_pair": lambda c, r: O.nca_pair(c, r, beta=0.1),
    "bco_pair": lambda c, r: O.bco_pair(c, r, beta=0.1),
    "discopop": lambda c, r: O.discopop(c, r, beta=0.1),
    "sppo_hard": lambda c, r: O.sppo_hard(c, r, beta=0.1),
}
UNPAIRED = {
    "kto": lambda x, label: O.kto(x, label, torch.tensor(0.3), beta=0.1, undesirable_weight=1.33),
    "apo_zero_unpaired": lambda x, label: O.apo_zero_unpaired(x, label, beta=0.1),
}
# From impossible to certain; the neighbourhood of 0 is where ORPO's odds blow up
LOGPS = st.one_of(
    st.floats(-1e4, 0.0),
    st.sampled_from([0.0, -0.0, -1e-45, -1e-12, -1e-8, -2.9e-8, -6e-8, -1.2e-7, -1e-3, -math.log(2), -1e4]),
)


@st.composite
def batches(draw, sides=2):
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    out = []
    for _ in range(sides):
        values = draw(st.lists(LOGPS, min_size=rows * tokens, max_size=rows * tokens))
        lengths = draw(st.lists(st.integers(0, tokens), min_size=rows, max_size=rows))
        mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
        logps = torch.tensor(values).view(rows, tokens).to(dtype).masked_fill(~mask, float("nan")).requires_grad_()
        out.append(O.Completions(logps, mask, torch.tensor(values).view(rows, tokens).flip(0, 1)))
    return out


def _assert_finite(loss, sides):
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    for side in sides:
        assert torch.isfinite(side.logps.grad).all()
        assert (side.logps.grad[~side.mask] == 0).all()


@pytest.mark.parametrize("name", PAIRED)
@given(pair=batches())
@settings(max_examples=60, deadline=None)
def test_paired_loss_and_gradient_are_finite(name, pair):
    _assert_finite(PAIRED[name](*pair), pair)


@pytest.mark.parametrize("name", UNPAIRED)
@given(rows=batches(sides=1), desirable=st.booleans())
@settings(max_examples=60, deadline=None)
def test_unpaired_loss_and_gradient_are_finite(name, rows, desirable):
    label = torch.full((len(rows[0].logps),), desirable)
    _assert_finite(UNPAIRED[name](rows[0], label), rows)


def _random(rows=5, tokens=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    logps = -torch.rand(rows, tokens, generator=g, dtype=torch.float64) * 3
    ref = -torch.rand(rows, tokens, generator=g, dtype=torch.float64) * 3
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=g)
    return O.Completions(logps, mask, ref)


def _padded(x, width=4):
    left = torch.full((len(x.logps), width), 3.25, dtype=x.logps.dtype)
    off = torch.zeros(left.shape, dtype=torch.bool)
    return O.Completions(
        torch.cat([left, x.logps, left], 1), torch.cat([off, x.mask, off], 1), torch.cat([left, x.ref, left], 1)
    )


def _rows(x, index):
    return O.Completions(x.logps[index], x.mask[index], x.ref[index])


@pytest.mark.parametrize("name", PAIRED)
def test_paired_ignores_padding_and_row_order(name):
    chosen, rejected = _random(seed=1), _random(seed=2)
    loss, order = PAIRED[name](chosen, rejected), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(PAIRED[name](_padded(chosen), _padded(rejected)), loss)
    torch.testing.assert_close(PAIRED[name](_rows(chosen, order), _rows(rejected, order)), loss[order])


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_ignores_padding_and_row_order(name):
    rows, label, order = _random(), torch.tensor([True, False, True, True, False]), torch.tensor([3, 0, 4, 2, 1])
    loss = UNPAIRED[name](rows, label)
    torch.testing.assert_close(UNPAIRED[name](_padded(rows), label), loss)
    torch.testing.assert_close(UNPAIRED[name](_rows(rows, order), label[order]), loss[order])


def test_gamma_zero_is_gamma_zero():
    """A `gamma or default` turned a gamma of 0 into the default."""
    chosen, rejected = _random(seed=1), _random(seed=2)
    by_hand = -torch.nn.functional.logsigmoid(2.0 * (chosen.mean - rejected.mean))
    torch.testing.assert_close(O.simpo(chosen, rejected, beta=2.0, gamma=0.0), by_hand)
    assert not torch.allclose(O.simpo(chosen, rejected, beta=2.0, gamma=1.0), by_hand)


def test_reference_gets_no_gradient():
    ref = torch.zeros(1, 2, requires_grad=True)
    side = O.Completions(torch.full((1, 2), -1.0, requires_grad=True), torch.ones(1, 2), ref)
    O.dpo(side, side, beta=0.1).sum().backward()
    assert ref.grad is None


def test_a_loss_with_reference_says_when_there_is_none():
    side = O.Completions(torch.full((1, 2), -1.0), torch.ones(1, 2))
    with pytest.raises(ValueError, match="reference"):
        O.dpo(side, side, beta=0.1)
