"""Labels without a -100, for LM heads that look for it.

A head selects the states that a label asks for by a boolean mask, which waits for the device to count them, once more
in the backward pass. A row layout hands over only such states. These labels know it, so the head's `labels != -100`,
`states[mask]` and `masked_scatter(mask, ...)` become views.
"""

from typing import Any

import torch
from torch import Tensor


class AllLabelled(Tensor):
    """Integer labels of which none is -100."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.ne, Tensor.__ne__, torch.ne) and args[1:] == (-100,):
            return torch.ones_like(_plain(args[0]), dtype=torch.bool).as_subclass(AllTrue)
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, cls) and func is not Tensor.to:
            return _plain(result)
        return result


class AllTrue(Tensor):
    """A mask of which every element is True."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], cls) and not isinstance(args[0], cls):
            return _plain(args[0]).flatten(0, args[1].ndim - 1)
        if func in (Tensor.masked_scatter, torch.masked_scatter) and isinstance(args[1], cls):
            return _plain(args[2]).to(args[0].dtype).view(args[0].shape)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(_plain(x) for x in args), **(kwargs or {}))


def all_labelled(labels: Tensor) -> Tensor:
    """`labels`, which must have no -100, as labels that know it."""
    return labels.as_subclass(AllLabelled)


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, AllLabelled | AllTrue) else value
