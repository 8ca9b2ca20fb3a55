"""Bytes of optimizer states, by the names that `optim` takes in transformers."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# Blocks of bitsandbytes' 8-bit states; smaller tensors and embeddings keep float32 states
_BLOCK, _SMALLEST_8_BIT = 256, 4096
# optimizer: states of a parameter's size and dtype
_PLAIN = {
    "adamw_torch": 2, "adamw_torch_fused": 2, "adamw_torch_xla": 2, "adamw_torch_npu_fused": 2, "adamw_apex_fused": 2,
    "sgd": 0, "adagrad": 1, "rmsprop": 1,
}  # fmt: skip
# optimizer of bitsandbytes: float32 states, or 8-bit ones with a scale per block
_BNB = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}
_BNB_NAMES = {
    "adamw_bnb_8bit": "adamw_8bit", "rmsprop_bnb": "rmsprop_32bit", "rmsprop_bnb_8bit": "rmsprop_8bit",
    "rmsprop_bnb_32bit": "rmsprop_32bit", "ademamix": "ademamix_32bit",
}  # fmt: skip


def state_bytes(optim: str, parameters: Iterable[tuple[Tensor, bool]]) -> int | None:
    """Bytes of the states of trained parameters after a step; None for an optimizer that is not known here.

    Args:
        optim: a value of `TrainingArguments.optim`.
        parameters: each trained parameter, and whether it is an embedding (which transformers keeps out of 8 bit).
    """
    if optim in _PLAIN:
        return sum(_PLAIN[optim] * p.numel() * p.element_size() for p, _ in parameters)
    if optim == "adafactor":
        return sum(_adafactor(p) for p, _ in parameters)
    kind, _, bits = _BNB_NAMES.get(optim, optim).removeprefix("paged_").rpartition("_")
    if kind not in _BNB or bits not in ("8bit", "32bit"):
        return None
    return sum(_bitsandbytes(p, _BNB[kind], bits == "8bit" and not embedding) for p, embedding in parameters)


def _adafactor(p: Tensor) -> int:
    """float32: a row and a column of second moments per matrix, all of them for a vector; no first moment."""
    if p.dim() < 2:
        return 4 * p.numel()
    rest = math.prod(p.shape[:-2])
    return 4 * rest * (p.shape[-2] + p.shape[-1])


def _bitsandbytes(p: Tensor, states: int, eight_bit: bool) -> int:
    if not eight_bit or p.numel() < _SMALLEST_8_BIT:
        return 4 * states * p.numel()
    scales = 4 * math.ceil(p.numel() / _BLOCK)
    return states * (p.numel() + scales)


def transient_bytes(optim: str, parameters: Iterable[Tensor], cuda: bool) -> int:
    """Bytes that the step itself needs for a moment: the update's intermediates where it is not fused.

    torch's optimizers update all tensors at once on CUDA (one intermediate of everything) and one by one elsewhere.
    """
    sizes = [p.numel() * max(p.element_size(), torch.float32.itemsize) for p in parameters]
    if not sizes or "fused" in optim or "bit" in optim:
        return 0
    return sum(sizes) if cuda and optim in ("adamw_torch", "rmsprop", "adagrad") else 2 * max(sizes)
