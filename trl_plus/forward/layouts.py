"""Row layouts: where each token of a padded batch goes so that it is computed once, and how to find it again.

Rows of a batch come in groups that begin alike: chosen and rejected of a pair, or a completion and its KL partner. A
layout keeps the common beginning once. A group's first row is whole, and each further one is a *branch*: the tokens
after what it shares with the first. `packed` puts all groups behind one another into one row without padding; `shared`
puts each group into a row of its own, padded to the longest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.rope import Factors


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU. The one place of a training step that waits for the device.

    Args:
        tensors: of one device; integers, bool, or floats that float32 holds.
    """
    if not tensors:
        return []
    return _unpack(_pack(tensors).cpu(), tensors)


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on `device`, as `to_host`. On CUDA the host goes on while they are copied."""
    if torch.device(device).type == "cpu" or not tensors:
        return list(tensors)
    packed = _pack(tensors)
    if torch.device(device).type == "cuda":
        packed = packed.pin_memory()
    return _unpack(packed.to(device, non_blocking=True), tensors)


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([_as_integers(tensor).reshape(-1) for tensor in tensors])


def _unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = packed.split([tensor.numel() for tensor in like])
    return [
        (part.int().view(torch.float32) if tensor.is_floating_point() else part).to(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]


def _as_integers(tensor: Tensor) -> Tensor:
    return (tensor.float().view(torch.int32) if tensor.is_floating_point() else tensor).long()


LAYOUTS = ("rows", "shared", "packed")
# Tokens below which a common beginning is not worth keeping once: it costs a masked attention call per branch
LEAST_SHARED = 8


@dataclass(frozen=True)
class Branch:
    """A run of tokens of one row that stand together in the layout.

    Args:
        length: tokens of the run.
        shared: leading tokens of the group's first row that come before it; 0 for that row itself.
        padding: the run is padding and nothing attends to it.
    """

    length: int
    shared: int = 0
    padding: bool = False


@dataclass(frozen=True)
class Plan:
    """How R padded rows of L tokens become B rows of T tokens, and back.

    Args:
        source: (B, T), flat index into (R, L) of each token; 0 for padding.
        positions: (B, T), the position of each token in its own row.
        gather: (R, L), flat index into (B, T) of each token; 0 for padding.
        branches: in the order of the tokens of (B, T), padding included.
        group, branch, shared: (B, T), the group and branch that a token belongs to (-1 for padding), and how many
            tokens of the group's first row its branch continues.
        needed: tokens that are not padding.
    """

    source: Tensor
    positions: Tensor
    gather: Tensor
    branches: tuple[Branch, ...]
    group: Tensor
    branch: Tensor
    shared: Tensor
    needed: int
    cache: dict = field(default_factory=dict, compare=False)  # masks that all layers of a model have in common

    @property
    def computed(self) -> int:
        """Tokens that a model computes."""
        return self.source.numel()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the plan by the names of their fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is Tensor}

    def with_tensors(self, tensors: Iterable[Tensor]) -> "Plan":
        """The same plan with other copies of `tensors`, in their order."""
        return replace(self, **dict(zip(self.tensors, tensors, strict=True)), cache={})

    def to(self, device: torch.device) -> "Plan":
        """The same plan with its tensors on a device, in one copy."""
        return self.with_tensors(to_device(list(self.tensors.values()), device))

    @cached_property
    def runs(self) -> tuple[int, ...]:
        return tuple(branch.length for branch in self.branches)

    def visible(self, window: int | None = None) -> Tensor:
        """(B, 1, T, T) bool: which key (last) each query may attend to, at most `window` positions back."""
        query, key = (slice(None), slice(None), None), (slice(None), None)
        distance = self.positions[query] - self.positions[key]
        opens = self.shared[key] == 0  # only a group's first row is shared
        own = self.branch[query] == self.branch[key]
        before = opens & (self.positions[key] < self.shared[query])
        seen = (self.group[query] == self.group[key]) & (own | before) & (distance >= 0)
        if window is not None:
            seen &= distance < window
        # Padding attends to itself: a row of nothing but masked keys is not a number
        return (seen | torch.eye(seen.size(1), dtype=torch.bool, device=seen.device))[:, None]


def common_beginning(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(R // 2,): tokens that row i and row i + R // 2 begin with alike, of right-padded rows (R, L)."""
    half = len(input_ids) // 2
    alike = (input_ids[:half] == input_ids[half:]) & attention_mask[:half].bool() & attention_mask[half:].bool()
    return alike.cumprod(1).sum(1)


def make_plan(lengths: Tensor, common: Tensor, width: int, layout: str = "packed") -> Plan:
    """The plan of R rows, of which row i and row i + G form group i.

    Args:
        lengths: (R,), tokens of each row, on the CPU as everything here.
        common: (G,), tokens that the rows of a group begin with alike; R // 2 groups, or R groups of one row.
        width: L, the padded length.
        layout: "packed" or "shared".
    """
    groups, rows = len(common), len(lengths)
    each = rows // groups
    common = torch.where(common < LEAST_SHARED, 0, common)
    # Branches in the layout's order: group after group, the whole row first; (groups, each) flattened
    row = torch.arange(rows).view(each, groups).T.reshape(-1)
    start = torch.stack([torch.zeros_like(common), *[common] * (each - 1)], dim=1).reshape(-1)
    size = lengths[row] - start
    if layout == "shared":
        total = size.view(groups, each).sum(1)
        tokens = int(total.max())
        before = size.view(groups, each).cumsum(1) - size.view(groups, each)
        at = (torch.arange(groups)[:, None] * tokens + before).reshape(-1)
        shape = (groups, tokens)
    else:
        at = size.cumsum(0) - size
        shape = (1, int(size.sum()))

    branch_of = torch.repeat_interleave(torch.arange(rows), size)
    offset = torch.arange(len(branch_of)) - torch.repeat_interleave(size.cumsum(0) - size, size)
    place = at[branch_of] + offset

    def laid_out(values: Tensor, padding: int) -> Tensor:
        return torch.full((shape[0] * shape[1],), padding).index_put((place,), values).view(shape)

    return Plan(
        source=laid_out(row[branch_of] * width + start[branch_of] + offset, 0),
        positions=laid_out(start[branch_of] + offset, 0),
        gather=_gather(row, start, at, lengths, width, each),
        branches=_branches(size.tolist(), start.tolist(), shape, each),
        group=laid_out(branch_of // each, -1),
        branch=laid_out(branch_of, -1),
        shared=laid_out(start[branch_of], 0),
        needed=len(place),
    )


def _gather(row: Tensor, start: Tensor, at: Tensor, lengths: Tensor, width: int, each: int) -> Tensor:
    first = at.view(-1, each)[:, :1].expand(-1, each).reshape(-1)  # where the group's first row begins
    token = torch.arange(width)
    index = torch.where(token < start[:, None], first[:, None] + token, (at - start)[:, None] + token)
    by_row = torch.empty_like(index)
    by_row[row] = index
    return by_row.masked_fill(token >= lengths[:, None], 0)


def _branches(size: list[int], start: list[int], shape: tuple[int, int], each: int) -> tuple[Branch, ...]:
    found = []
    for begin in range(0, len(size), each):
        group = range(begin, begin + each)
        found += [Branch(size[i], start[i]) for i in group]
        left = shape[1] - sum(size[i] for i in group)
        if shape[0] > 1 and left:
            found.append(Branch(left, padding=True))
    return tuple(found)


# -- a packed row as kernels for sequences of variable length take it -----------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """Sequences whose queries are the last of their keys.

    Args:
        keys: (K,) int64, the token of the row that each key is; shared tokens come once for each branch.
        ends_q, ends_k: (N + 1,) int32, where each sequence ends, from 0.
        longest_q, longest_k: tokens.
    """

    keys: Tensor
    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int


def sequences_of(branches: Sequence[Branch]) -> Sequences:
    """The sequences of a row of branches without padding, on the CPU."""
    at, first, keys, queries = 0, 0, [], []
    for branch in branches:
        own = torch.arange(at, at + branch.length)
        if not branch.shared:
            first = at
        if branch.length:
            keys.append(torch.cat([torch.arange(first, first + branch.shared), own]) if branch.shared else own)
            queries.append(branch.length)
        at += branch.length
    sizes_q, sizes_k = (torch.tensor([0, *sizes]) for sizes in (queries, map(len, keys)))
    return Sequences(
        keys=torch.cat(keys) if keys else torch.zeros(0, dtype=torch.long),
        ends_q=sizes_q.cumsum(0).int(),
        ends_k=sizes_k.cumsum(0).int(),
        longest_q=int(sizes_q.max()),
        longest_k=int(sizes_k.max()),
    )


# -- plans of the micro-batches of a step ---------------------------------------------------------------------------
#
# Their rows are counted on the device, read once, and laid out on the host before the first forward pass of a step. So
# nothing between its first forward and its last backward pass waits for the device.


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


def plan_rows(input_ids: Tensor, attention_mask: Tensor, layout: str, share: bool = True) -> Plan | None:
    """The plan of right-padded rows (R, L), on their device; None for rows that are padded elsewhere."""
    (counts,), _ = count_rows([Rows(input_ids, attention_mask, attention_mask)])
    (plan,), _ = place([plan_of(counts, input_ids.size(1), layout, share)], input_ids.device)
    return plan


def rows_of_batch(batch: dict[str, Any]) -> Rows:
    return Rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
