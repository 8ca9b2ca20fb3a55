"""Several tensors between host and device as one copy. A copy from a device waits for its queue, so it comes once."""

from collections.abc import Sequence

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
