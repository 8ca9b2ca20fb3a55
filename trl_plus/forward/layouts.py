"""Row layouts: where each token of a padded batch goes so that it is computed once, and how to find it again.

Rows of a batch come in groups that begin alike: chosen and rejected of a pair, or a completion and its KL partner. A
layout keeps the common beginning once. A group's first row is whole, and each further one is a *branch*: the tokens
after what it shares with the first. `packed` puts all groups behind one another into one row without padding; `shared`
puts each group into a row of its own, padded to the longest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor


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
