"""A packed row as kernels for sequences of variable length take it: where each sequence's queries and keys end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_plus.forward.layouts import Branch


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
