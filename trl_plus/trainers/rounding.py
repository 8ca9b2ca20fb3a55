"""Weights in 16 bits whose steps are rounded away, found before the first step from the weights and the rate."""

from typing import Any

import torch
from torch import Tensor

from trl_plus.trainers.optimizers import optimizer_name

SAMPLE = 4096  # weights that are looked at of each tensor, evenly spread
MOST = 0.5  # share of weights from which a run is warned: measured by benchmarks/rounding.py (docs/reliability.md)
# The same of an adapter, whose one half starts at 0 and learns while the other stands still
MOST_OF_ADAPTER = 0.9
# Optimizers whose step is not about the rate, but the rate times the gradient
_BY_GRADIENT = ("sgd", "lomo")
# What optimizers call a step that is not lost to rounding
_KEEPS_REST = ("bf16_stochastic_round", "stochastic_rounding", "kahan_sum", "use_kahan_summation")


def rounded_away(model: Any, args: Any, optimizer: Any) -> str | None:
    """One sentence if a step of about `learning_rate` leaves most trained weights as they are, or None.

    float16 weights are always named.

    Says nothing for optimizers whose steps have another size (SGD), that round stochastically or keep what rounding
    took, and under DeepSpeed, which steps a copy in float32.
    """
    name = optimizer_name(args)
    if any(p.requires_grad and p.dtype is torch.float16 for p in model.parameters()):
        return (
            "Trained weights are float16 numbers, in which small gradients and Adam's averages of their squares become "
            "0: steps are lost or blow up. Fix: train float32 weights (`dtype: float32`); `fp16: true` computes in "
            "float16 all the same."
        )
    if not args.learning_rate or keeps_rest(optimizer) or any(part in name for part in _BY_GRADIENT):
        return None
    needed = needed_rates(model)
    share = float((needed > args.learning_rate).double().mean()) if len(needed) else 0.0
    if share <= (MOST_OF_ADAPTER if getattr(model, "peft_config", None) else MOST):
        return None
    enough = float(f"{float(needed.quantile(0.5)):.0e}")
    return (
        f"{share:.1%} of the trained weights are bfloat16 numbers that a step of learning_rate {args.learning_rate:g} "
        f"cannot change: it is rounded away. Fix: train float32 weights (`dtype: float32`) with `bf16: true`, which "
        f"still computes in bfloat16, or raise learning_rate to about {enough:g}."
    )


def keeps_rest(optimizer: Any) -> bool:
    """True if an optimizer's small steps survive rounding, on average or in a buffer beside the weights."""
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        if "deepspeed" in type(optimizer).__module__:
            return True
        optimizer = optimizer.optimizer
    if type(optimizer).__module__.startswith(("deepspeed", "optimi.")):
        return "deepspeed" in type(optimizer).__module__ or optimizer.defaults.get("kahan_sum") is not False
    settings = {**getattr(optimizer, "defaults", {}), **vars(optimizer)} if optimizer is not None else {}
    return any(settings.get(name) for name in _KEEPS_REST)


@torch.no_grad()
def needed_rates(model: Any) -> Tensor:
    """(N,) float32 on the CPU: the smallest step that changes each of some trained weights; 0 for float32 ones.

    A step is lost if it is at most half the distance to the next number of the dtype. Tensors are sampled by size.
    """
    found = []
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    total = sum(p.numel() for p in trained)
    for parameter in trained:
        weights = getattr(parameter, "to_local", lambda parameter=parameter: parameter)().detach().flatten()
        share = max(1, min(len(weights), round(64 * SAMPLE * parameter.numel() / total)))
        some = weights[:: max(1, len(weights) // share)].cpu()
        if parameter.dtype in (torch.bfloat16, torch.float16):
            found.append(half_spacing(some))
        else:
            found.append(torch.zeros(len(some)))
    return torch.cat(found) if found else torch.zeros(0)


def half_spacing(weights: Tensor) -> Tensor:
    """Half the distance from 16-bit numbers to the next ones of their dtype, in float32."""
    info = torch.finfo(weights.dtype)
    exponent = torch.frexp(weights.float())[1] - 1  # weight = mantissa * 2^exponent, mantissa in [1, 2)
    smallest = info.smallest_normal * info.eps / 2
    spacing = torch.ldexp(torch.full(weights.shape, info.eps / 2), exponent).clamp(min=smallest)
    return spacing.masked_fill(weights == 0, smallest)
