"""Attention over layouts in torch's own functions: one branch at a time on the CPU, and with a mask on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trl_plus.forward.layouts import Plan


@dataclass(frozen=True)
class Options:
    """Options of one layer.

    Args:
        scaling: factor of the scores; 1 / sqrt(head size) if None.
        dropout: probability that an attention weight is dropped.
        window: positions that a query looks back, its own included; all if None.
        softcap: bound c of the scores, c * tanh(score / c); none if None.
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None


def repeat_heads(keys: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, K, T, D) with each head repeated for the query heads (B, H, ., .) that share it."""
    times = query.size(1) // keys.size(1)
    return keys if times == 1 else keys.repeat_interleave(times, dim=1)


def by_branch(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """(B, H, T, V): each branch attends causally to itself and to what it shares of its group's first row.

    Args:
        query, key, value: (B, H, T, D), (B, K, T, D), (B, K, T, V).
    """
    rows, heads, tokens = query.shape[:3]
    key, value = repeat_heads(key, query), repeat_heads(value, query)
    if rows > 1:  # one line of tokens, as `plan.runs` counts them
        query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    outputs = []
    pieces = zip(*(x.split(plan.runs, dim=2) for x in (query, key, value)), plan.branches, strict=True)
    for q, k, v, branch in pieces:
        if branch.padding or not branch.length:
            outputs.append(torch.zeros_like(v))
            continue
        if not branch.shared:
            first_k, first_v = k, v
        else:
            k = torch.cat([first_k[:, :, : branch.shared], k], dim=2)
            v = torch.cat([first_v[:, :, : branch.shared], v], dim=2)
        outputs.append(_branch(q, k, v, plan, options))
    output = torch.cat(outputs, dim=2)
    return output[0].view(heads, rows, tokens, -1).transpose(0, 1) if rows > 1 else output


def _branch(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options) -> Tensor:
    queries, keys = q.size(2), k.size(2)
    windowed = options.window is not None and keys > options.window
    if options.softcap is None and queries == keys and not windowed:
        return scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=options.dropout, scale=options.scaling)
    mask = _mask(queries, keys, options.window if windowed else None, q, plan)
    if options.softcap is None:
        return scaled_dot_product_attention(q, k, v, mask, options.dropout, scale=options.scaling)
    scores = q @ k.mT * (q.size(-1) ** -0.5 if options.scaling is None else options.scaling)
    scores = options.softcap * torch.tanh(scores / options.softcap) + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return torch.nn.functional.dropout(weights, options.dropout) @ v


def _mask(queries: int, keys: int, window: int | None, like: Tensor, plan: Plan) -> Tensor:
    """(queries, keys), additive: causal with the last query at the last key. Made once for all layers."""
    name = (queries, keys, window, like.dtype)
    if name not in plan.cache:
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        hidden = (distance < 0) | (distance >= (window or keys))
        plan.cache[name] = (
            torch.zeros(queries, keys, dtype=like.dtype).masked_fill(hidden, float("-inf")).to(like.device)
        )
    return plan.cache[name]


def by_mask(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """As `by_branch`."""
    key, value = repeat_heads(key, query), repeat_heads(value, query)
    name = ("dense", options.window)
    if name not in plan.cache:
        plan.cache[name] = plan.visible(options.window)
    mask = plan.cache[name]
    if options.softcap is None:
        return scaled_dot_product_attention(query, key, value, mask, options.dropout, scale=options.scaling)
    scores = query @ key.mT * (query.size(-1) ** -0.5 if options.scaling is None else options.scaling)
    scores = options.softcap * torch.tanh(scores / options.softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.nn.functional.dropout(weights, options.dropout) @ value
