"""Attention with a mask over the whole layout: right on every device, and quadratic in its tokens."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trl_plus.forward.attention.options import Options, repeat_heads
from trl_plus.forward.layouts import Plan


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
