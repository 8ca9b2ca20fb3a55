"""Plans of the micro-batches of a step: their rows are counted on the device, read once, and laid out on the host.

Everything that depends on the lengths of rows is known before the first forward pass of a step, so nothing between its
first forward and its last backward pass waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.layouts import Plan, common_beginning, make_plan, sequences_of, to_device, to_host
from trl_plus.forward.rope import Factors


@dataclass(frozen=True)
class Rows:
    """Padded rows as a model is given them.

    Args:
        ids, mask: (R, L), `input_ids` and `attention_mask`.
        labelled: (R, L), the tokens that labels ask for, bool or 0/1.
    """

    ids: Tensor
    mask: Tensor
    labelled: Tensor

    @property
    def state(self) -> tuple[tuple[int, int], ...]:
        """Changes when one of the tensors is another one or is written to."""
        return tuple((id(tensor), tensor._version) for tensor in (self.ids, self.mask, self.labelled))


@dataclass(frozen=True)
class Counts:
    """Sizes of R padded rows, on the host.

    Args:
        lengths: (R,), tokens of each row.
        common: (R // 2,), tokens that rows i and i + R // 2 begin with alike; empty if R is odd.
        right: the rows are padded on the right.
        labelled: tokens that a label asks for, the first of each row not counted.
    """

    lengths: Tensor
    common: Tensor
    right: bool
    labelled: int


def count_rows(batches: Sequence[Rows], also: Sequence[Tensor] = ()) -> tuple[list[Counts], list[Tensor]]:
    """The sizes of some batches, and the tensors of `also` on the host. Waits for the device once."""
    counted = [part for rows in batches for part in _count(rows)]
    found = to_host([*counted, *also])
    return counts_from(found[: len(counted)]), found[len(counted) :]


def _count(rows: Rows) -> list[Tensor]:
    attended = rows.mask.bool()
    lengths = attended.sum(1)
    right = (attended.cumprod(1).sum(1) == lengths).all()
    common = common_beginning(rows.ids, attended) if len(lengths) % 2 == 0 else lengths[:0]
    return [lengths, common, right, rows.labelled[:, 1:].bool().sum()]


def counts_from(found: Sequence[Tensor]) -> list[Counts]:
    """The counts that `_count` took of each batch, on the host, one batch after the other."""
    fours = zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
    return [Counts(lengths, common, bool(right), int(labelled)) for lengths, common, right, labelled in fours]


Setting = tuple[str, bool, Factors | None]  # layout, whether groups share their beginning, rotary factors


def plan_of(counts: Counts, width: int, layout: str, share: bool = True, factors: Factors | None = None) -> Plan | None:
    """The plan of rows padded to `width`, on the host; None if they are not padded on the right.

    Rows with different rotary `factors` share nothing.
    """
    if not counts.right:
        return None
    common = counts.common if share and len(counts.common) else torch.zeros(len(counts.lengths), dtype=torch.long)
    if factors is not None and share and len(counts.common):
        first, second = factors.of(counts.lengths).chunk(2)
        common = common.masked_fill(first != second, 0)
    return make_plan(counts.lengths, common, width, layout)


def place(plans: Sequence[Plan | None], device: torch.device, also: Sequence[Tensor] = ()) -> tuple[list, list[Tensor]]:
    """Plans and the tensors of `also` on a device, in one copy."""
    if torch.device(device).type == "cpu":
        return list(plans), list(also)
    cuts = [sequences_of(plan.branches) if plan is not None and len(plan.source) == 1 else None for plan in plans]
    parts = [[] if plan is None else [*plan.tensors.values()] for plan in plans]
    ends = [[] if cut is None else [cut.keys, cut.ends_q, cut.ends_k] for cut in cuts]
    moved = iter(to_device([t for group in zip(parts, ends, strict=True) for g in group for t in g] + [*also], device))
    placed: list[Plan | None] = []
    for plan, cut, part, end in zip(plans, cuts, parts, ends, strict=True):
        there, others = [next(moved) for _ in part], [next(moved) for _ in end]
        if plan is not None:
            plan = plan.with_tensors(there)
            if cut is not None:
                plan.cache["sequences"] = type(cut)(*others, cut.longest_q, cut.longest_k)
        placed.append(plan)
    return placed, list(moved)


class _Known:
    """The planner's record of one batch."""

    def __init__(self, rows: Rows, plan: Plan | None, labelled: int) -> None:
        self.rows, self.plan, self.labelled = rows, plan, labelled  # the tensors are kept, or their ids mean nothing
        self.state = rows.state
        self._where: Tensor | None = None

    def has(self, ids: Tensor, mask: Tensor) -> bool:
        return Rows(ids, mask, self.rows.labelled).state == self.state

    def where(self, labels: Tensor) -> Tensor:
        if self._where is None:
            self._where = labelled_at(labels, self.labelled)
        return self._where


class Planner:
    """Makes plans, of a step's micro-batches at once and of any other batch when it comes.

    The reference scores the rows that the policy just did, with labels of the same tokens: both get one plan.
    """

    def __init__(self) -> None:
        self._setting: Setting | None = None
        self._prepared: dict[int, _Known] = {}
        self._last: tuple[Any, _Known | None] = (None, None)

    def prepare(
        self,
        batches: Sequence[Rows],
        counts: Sequence[Counts],
        setting: Setting,
        device: torch.device,
        also: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Plans batches whose sizes are known and forgets those before them. Returns `also`, from the host to `device`.

        The rows may still be on the host if `also` holds them: `know` replaces them by what the model will be given.
        """
        plans = [plan_of(count, rows.ids.size(1), *setting) for rows, count in zip(batches, counts, strict=True)]
        plans, moved = place(plans, device, also)
        self._setting = setting
        self._prepared = {
            id(rows.ids): _Known(rows, plan, count.labelled)
            for rows, plan, count in zip(batches, plans, counts, strict=True)
        }
        return moved

    def know(self, before: Rows, now: Rows) -> None:
        """The rows of a prepared batch are now other tensors of the same contents."""
        known = self._prepared.pop(id(before.ids))
        self._prepared[id(now.ids)] = _Known(now, known.plan, known.labelled)

    def __call__(
        self, ids: Tensor, mask: Tensor, labels: Tensor, layout: str, share: bool, factors: Factors | None = None
    ) -> tuple[Plan, Tensor] | None:
        """The plan of a batch, and (N,) the flat indices into `labels[:, 1:]` of the tokens that they ask for.

        Args:
            ids, mask, labels: (R, L). `score.mark_labels` says of which mask the labels are.

        Returns None for rows that are not padded on the right. Waits for the device only if batch or labels are new.
        """
        of = getattr(labels, "of", None)
        setting = layout, share, factors
        known = self._find(ids, mask, setting)
        if known is None:
            wanted = labels != -100
            (counts,), _ = count_rows([Rows(ids, mask, wanted)])
            (plan,), _ = place([plan_of(counts, ids.size(1), *setting)], ids.device)
            of = labels.of = wanted if of is None else of
            known = _Known(Rows(ids, mask, of), plan, counts.labelled)
            self._last = setting, known
        if known.plan is None:
            return None
        if of is not known.rows.labelled:
            return known.plan, labelled_at(labels, int((labels[:, 1:] != -100).sum()))
        return known.plan, known.where(labels)

    def _find(self, ids: Tensor, mask: Tensor, setting: Setting) -> _Known | None:
        candidates = [self._prepared.get(id(ids)) if self._setting == setting else None]
        candidates.append(self._last[1] if self._last[0] == setting else None)
        return next((known for known in candidates if known is not None and known.has(ids, mask)), None)


def labelled_at(labels: Tensor, count: int) -> Tensor:
    """(count,): flat indices into `labels[:, 1:]` of what is not -100, in order, without waiting for their number."""
    wanted = labels[:, 1:].reshape(-1) != -100
    place = torch.where(wanted, wanted.cumsum(0) - 1, count).clamp(max=count)
    index = place.new_zeros(count + 1)
    return index.scatter_(0, place, torch.arange(len(place), device=place.device))[:count]


def plan_rows(
    input_ids: Tensor, attention_mask: Tensor, layout: str, share: bool = True, factors: Factors | None = None
) -> Plan | None:
    """The plan of right-padded rows (R, L), on their device; None for rows that are padded elsewhere."""
    (counts,), _ = count_rows([Rows(input_ids, attention_mask, attention_mask)])
    (plan,), _ = place([plan_of(counts, input_ids.size(1), layout, share, factors)], input_ids.device)
    return plan


def rows_of_batch(batch: dict[str, Any]) -> Rows:
    return Rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
