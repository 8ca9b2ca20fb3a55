"""flex_attention over a layout: blocks of the mask from the branches, and few variants to compile.

On CUDA flex_attention is compiled, for each kind of layer by itself, with and without gradient, and for any length: a
row is padded to whole blocks, so that no length is special. Nothing in this file has run on a GPU yet (docs/speed.md).
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import Branch, Plan, to_device

BLOCK = 128  # tokens of a block, as flex_attention has it
LEAST = 2 * BLOCK  # a mask of one block would be compiled by itself


def flex(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """As `plain.by_branch`, without dropout. On CUDA it is compiled. Elsewhere it has no gradient."""
    tokens = query.size(2)
    length = padded(tokens)
    name = ("flex", options.window)
    if name not in plan.cache:
        plan.cache[name] = _block_mask(plan, options.window, length, query.device)
    compiled = must_compile(query)
    attend = attention_for(options, compiled, torch.is_grad_enabled() if compiled else False)
    inputs = (pad(x, (0, 0, 0, length - tokens)) if length > tokens else x for x in (query, key, value))
    caps = None
    if options.softcap is not None:
        caps = torch.full((query.size(1),), options.softcap, device=query.device)
    return attend(*inputs, plan.cache[name], caps)[:, :, :tokens]


def padded(tokens: int) -> int:
    """Tokens of a row in whole blocks."""
    return max(LEAST, -(-tokens // BLOCK) * BLOCK)


def must_compile(query: Tensor) -> bool:
    return query.device.type == "cuda"


@functools.cache
def attention_for(options: Options, compiled: bool, gradient: bool) -> Callable:
    """flex_attention of one kind of layer, with or without gradient.

    torch compiles a function a bounded number of times and counts them by its code. So each kind has its own copy, and
    beyond the bound there is an error: the plain function would build the whole score matrix.
    """
    from torch.nn.attention.flex_attention import flex_attention

    scaling = options.scaling

    # The cap comes as a table by head: a number of Python would be a symbol in a function of any length, which
    # flex_attention refuses
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, caps: Tensor | None) -> Tensor:
        def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return caps[h] * torch.tanh(score / caps[h])

        return flex_attention(
            query,
            key,
            value,
            score_mod=None if caps is None else capped,
            block_mask=mask,
            scale=scaling,
            enable_gqa=key.size(1) != query.size(1),
        )

    if not compiled:
        return attend
    code = attend.__code__.replace()
    own = types.FunctionType(code, attend.__globals__, attend.__name__, closure=attend.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _block_mask(plan: Plan, window: int | None, length: int, device: torch.device) -> Any:
    """The mask of a layout padded to `length` tokens, as flex_attention takes it."""
    from torch.nn.attention.flex_attention import BlockMask

    some, whole = blocks(plan.branches, plan.source.shape, window)
    tables = to_device([*_listed(some & ~whole), *_listed(whole)], device)
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=BLOCK, mask_mod=_visible(plan, window, length))


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, Q, K) bool: (B, 1, Q) how many blocks each row of blocks has, and (B, 1, Q, K) which, those first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


def blocks(branches: tuple[Branch, ...], shape: torch.Size, window: int | None) -> tuple[Tensor, Tensor]:
    """(B, Q, K) bool on the CPU: blocks in which some query sees some key, and those in which every one sees every key.

    Made from where branches begin and end, so nothing of the size of the score matrix is built. Padding is in none.
    """
    rows, tokens = shape
    count = padded(tokens) // BLOCK
    some, whole = (torch.zeros(rows, count, count, dtype=torch.bool) for _ in range(2))
    at = first = 0
    for branch in branches:
        row, begin = divmod(at, tokens)
        at += branch.length
        if branch.padding or not branch.length:
            continue
        if not branch.shared:
            first = begin
        for block in range(begin // BLOCK, (begin + branch.length - 1) // BLOCK + 1):
            start = max(begin, block * BLOCK)
            end = min(begin + branch.length, (block + 1) * BLOCK)  # the queries of the block in this branch
            for low, high, sure_low, sure_high in _seen(branch, begin, first, start, end, window):
                if high > low:
                    some[row, block, low // BLOCK : (high - 1) // BLOCK + 1] = True
                if end - start == BLOCK:
                    whole[row, block, -(-sure_low // BLOCK) : max(sure_high, 0) // BLOCK] = True
    return some, whole


def _seen(
    branch: Branch, begin: int, first: int, start: int, end: int, window: int | None
) -> tuple[tuple[int, int, int, int], ...]:
    """Keys that some, and that all, of the queries from `start` to `end` see, in the branch and in what it shares.

    Each as (low, high, low, high): tokens of the row, the high ones excluded.
    """
    far = window or branch.shared + branch.length
    own = (max(begin, start - far + 1), end, max(begin, end - far), start + 1)
    # a query at token t stands at position t - begin + shared of its own row, and a shared key at token k at k - first
    shift = begin - branch.shared - first
    low, sure = (max(first, t - shift - far + 1) for t in (start, end - 1))
    return own, (low, first + branch.shared, sure, first + branch.shared)


def _visible(plan: Plan, window: int | None, length: int) -> Callable:
    """`Plan.visible` as a function of indices into a row of `length` tokens."""
    missing = (0, length - plan.source.size(1))
    group, branch = (pad(x, missing, value=-1) for x in (plan.group, plan.branch))
    shared, positions = (pad(x, missing) for x in (plan.shared, plan.positions))

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = positions[b, q] - positions[b, k]
        before = (shared[b, k] == 0) & (positions[b, k] < shared[b, q])
        seen = (group[b, q] == group[b, k]) & ((branch[b, q] == branch[b, k]) | before) & (distance >= 0)
        if window is not None:
            seen = seen & (distance < window)
        return seen

    return visible
