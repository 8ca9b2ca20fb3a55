"""Attention over a packed row on CUDA: kernels for sequences of variable length, and flex_attention.

Nothing in this file has run on a GPU yet (docs/speed.md).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.attention.flex import flex
from trl_plus.forward.attention.plain import Options, repeat_heads
from trl_plus.forward.layouts import Plan, Sequences, sequences_of, to_device

__all__ = ["flash", "flex", "sequences", "takes_varlen", "varlen"]
OLDEST = (8, 0)  # compute capability from which these kernels exist


def sequences(plan: Plan, device: torch.device) -> Sequences:
    """The sequences of a packed row, made once for all layers."""
    if "sequences" not in plan.cache:
        found = sequences_of(plan.branches)
        moved = to_device([found.keys, found.ends_q, found.ends_k], device)
        plan.cache["sequences"] = Sequences(*moved, found.longest_q, found.longest_k)
    return plan.cache["sequences"]


@functools.cache
def varlen_parameters() -> frozenset[str]:
    """The parameters of torch's `varlen_attn`, which grew from version to version; empty before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def takes_varlen(query: Tensor, value: Tensor, plan: Plan, options: Options) -> bool:
    """True if this torch's `varlen_attn` can do what a layer asks for.

    torch 2.10 takes `is_causal` and neither a scale nor a window. 2.11 takes `scale` and `window_size`. From 2.12 on
    keys may have fewer heads than queries.
    """
    known, size = varlen_parameters(), query.size(-1)
    if not known & {"window_size", "is_causal"} or options.dropout or options.softcap is not None:
        return False
    if len(plan.source) > 1 or query.element_size() != 2 or size != value.size(-1) or size > 256 or size % 8:
        return False
    usual_scale = options.scaling is None or abs(options.scaling * size**0.5 - 1) < 1e-6
    windowed = options.window is not None and options.window < sequences(plan, query.device).longest_k
    return (usual_scale or "scale" in known) and (not windowed or "window_size" in known)


def varlen(query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> Tensor:
    """torch's attention of variable length, for what `takes_varlen` allows."""
    from torch.nn.attention.varlen import varlen_attn

    known, parts = varlen_parameters(), sequences(plan, query.device)
    extra: dict[str, Any] = {"scale": options.scaling} if "scale" in known else {}
    if "window_size" in known:  # a window of ours counts the query's own position
        extra["window_size"] = (-1 if options.window is None else options.window - 1, 0)
    else:
        extra["is_causal"] = True
    if "enable_gqa" in known:
        extra["enable_gqa"] = key.size(1) != query.size(1)
    else:
        key, value = repeat_heads(key, query), repeat_heads(value, query)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    output = varlen_attn(
        q.contiguous(),
        k.index_select(0, parts.keys),  # not `k[keys]`, whose backward pass sorts the indices
        v.index_select(0, parts.keys),
        parts.ends_q,
        parts.ends_k,
        parts.longest_q,
        parts.longest_k,
        **extra,
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
    keys, values = (x.index_select(2, parts.keys) for x in (key, value))
    return forward(module, query, keys, values, None, **kwargs)
