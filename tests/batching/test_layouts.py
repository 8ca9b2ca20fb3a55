"""Plans by hand, and that every token is found again."""

import pytest
import torch

from trl_plus.forward import layouts
from trl_plus.forward.layouts import Branch, common_beginning, make_plan
from trl_plus.forward.packing import plan_rows

IDS = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0], [1, 2, 7, 8, 9], [5, 7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def share_anything(monkeypatch):
    monkeypatch.setattr(layouts, "LEAST_SHARED", 1)


def test_common_beginning():
    assert common_beginning(IDS, MASK).tolist() == [2, 1]


def test_packed_by_hand():
    plan = plan_rows(IDS, MASK, "packed")
    assert IDS.reshape(-1)[plan.source].tolist() == [[1, 2, 3, 4, 7, 8, 9, 5, 6, 7, 8]]
    assert plan.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 1, 2]]
    assert plan.branches == (Branch(4), Branch(3, shared=2), Branch(2), Branch(2, shared=1))
    assert plan.gather.tolist() == [[0, 1, 2, 3, 0], [7, 8, 0, 0, 0], [0, 1, 4, 5, 6], [7, 9, 10, 0, 0]]
    assert (plan.computed, plan.needed) == (11, 11)


def test_shared_by_hand():
    plan = plan_rows(IDS, MASK, "shared")
    assert IDS.reshape(-1)[plan.source].tolist() == [[1, 2, 3, 4, 7, 8, 9], [5, 6, 7, 8, 1, 1, 1]]
    assert plan.branches[-1] == Branch(3, padding=True)
    assert (plan.computed, plan.needed) == (14, 11)


def test_who_sees_whom_by_hand():
    seen = plan_rows(IDS, MASK, "packed").visible()[0, 0]
    assert seen[4].nonzero()[:, 0].tolist() == [0, 1, 4]  # 7 follows 1 2
    assert seen[6].nonzero()[:, 0].tolist() == [0, 1, 4, 5, 6]
    assert seen[9].nonzero()[:, 0].tolist() == [7, 9]
    windowed = plan_rows(IDS, MASK, "packed").visible(window=2)[0, 0]
    assert windowed[4].nonzero()[:, 0].tolist() == [1, 4]  # two positions, whatever stands between


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("share", [True, False])
def test_every_token_is_found_again(layout, share):
    plan = plan_rows(IDS, MASK, layout, share)
    found = IDS.reshape(-1)[plan.source].reshape(-1)[plan.gather]
    assert torch.equal(found[MASK.bool()], IDS[MASK.bool()])
    positions = plan.positions.reshape(-1)[plan.gather]
    assert torch.equal(positions[MASK.bool()], torch.arange(5).expand(4, 5)[MASK.bool()])


def test_odd_numbers_of_rows_share_nothing():
    plan = plan_rows(IDS[:3], MASK[:3], "packed")
    assert plan.branches == (Branch(4), Branch(2), Branch(5))


def test_rows_padded_on_the_left_have_no_plan():
    assert plan_rows(IDS.flip(1), MASK.flip(1), "packed") is None


def test_short_beginnings_are_computed_twice(monkeypatch):
    monkeypatch.setattr(layouts, "LEAST_SHARED", 8)
    plan = make_plan(torch.tensor([10, 12]), torch.tensor([7]), 12)
    assert plan.branches == (Branch(10), Branch(12))
