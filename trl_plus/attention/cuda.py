"""Attention over a packed row on CUDA: kernels for sequences of variable length, and flex_attention.

Nothing in this file has run on a GPU yet (docs/speed.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_plus.attention.options import Options
from trl_plus.batching.layouts import Plan


@dataclass(frozen=True)
class Sequences:
    """A packed row as sequences whose queries are the last of their keys.

    Args:
        keys: (K,), the token of the row that each key is; shared tokens come once for each branch.
        ends_q, ends_k: (N + 1,) int32, where each sequence ends, from 0.
        longest_q, longest_k: tokens.
    """

    keys: Tensor
    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int


def sequences(plan: Plan, device: torch.device) -> Sequences:
    """The sequences of a packed row, made once for all layers."""
    if "sequences" not in plan.cache:
        at, first, keys, queries = 0, 0, [], []
        for branch in plan.branches:
            own = torch.arange(at, at + branch.length)
            if not branch.shared:
                first = at
            if branch.length:
                keys.append(torch.cat([torch.arange(first, first + branch.shared), own]))
                queries.append(branch.length)
            at += branch.length
        sizes = torch.tensor([0, *map(len, keys)]), torch.tensor([0, *queries])
        plan.cache["sequences"] = Sequences(
            keys=torch.cat(keys).to(device),
            ends_q=sizes[1].cumsum(0).to(device, torch.int32),
            ends_k=sizes[0].cumsum(0).to(device, torch.int32),
            longest_q=int(sizes[1].max()),
            longest_k=int(sizes[0].max()),
        )
    return plan.cache["sequences"]


def varlen(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """torch's attention of variable length (2.10 and later), in 16 bits, without dropout and soft cap."""
    from torch.nn.attention.varlen import varlen_attn

    parts = sequences(plan, query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    back = -1 if options.window is None else options.window - 1  # a window counts the query's own position
    output = varlen_attn(
        q.contiguous(),
        k[parts.keys],
        v[parts.keys],
        parts.ends_q,
        parts.ends_k,
        parts.longest_q,
        parts.longest_k,
        scale=options.scaling,
        window_size=(back, 0),
        enable_gqa=key.size(1) != query.size(1),
    )
    return output.transpose(0, 1)[None]


def flash(forward: Callable, module: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, kwargs: dict) -> Any:
    """transformers' own flash-attention function, told where sequences end; its kernel aligns at the bottom right."""
    parts = sequences(plan, query.device)
    ends = {
        "cu_seq_lens_q": parts.ends_q,
        "cu_seq_lens_k": parts.ends_k,
        "max_length_q": parts.longest_q,
        "max_length_k": parts.longest_k,
    }
    kwargs = {name: value for name, value in kwargs.items() if name != "position_ids"} | ends
    return forward(module, query, key[:, :, parts.keys], value[:, :, parts.keys], None, **kwargs)


def flex(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """flex_attention with a mask by blocks, without dropout. On CUDA it is compiled; elsewhere it has no gradient."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    name = ("flex", options.window)
    if name not in plan.cache:
        visible = _visible(plan, options.window)
        rows, tokens = plan.source.shape
        plan.cache[name] = create_block_mask(visible, rows, None, tokens, tokens, device=str(query.device))
    score = None
    if options.softcap is not None:

        def score(value, b, h, q, k):
            return options.softcap * torch.tanh(value / options.softcap)

    attention = torch.compile(flex_attention) if query.device.type == "cuda" else flex_attention
    return attention(
        query,
        key,
        value,
        score_mod=score,
        block_mask=plan.cache[name],
        scale=options.scaling,
        enable_gqa=key.size(1) != query.size(1),
    )


def _visible(plan: Plan, window: int | None) -> Callable:
    """`Plan.visible` as a function of indices."""
    group, branch, shared, positions = plan.group, plan.branch, plan.shared, plan.positions

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = positions[b, q] - positions[b, k]
        before = (shared[b, k] == 0) & (positions[b, k] < shared[b, q])
        seen = (group[b, q] == group[b, k]) & ((branch[b, q] == branch[b, k]) | before) & (distance >= 0)
        if window is not None:
            seen = seen & (distance < window)
        return seen

    return visible
