"""Proof at the start of a run that a kernel's gradient is right, of which log-probabilities say nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trl_plus.forward.attention import plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import Plan

# Relative distance (L2) that a kernel's gradient may have from one computed in float32
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
_faults: list[Exception] | None = None  # of the proof that runs; None outside one


class Unsupported(Exception):
    """A layer asks for something that no layout but `rows` can give; the text says what, to follow "its attention"."""


@contextmanager
def proving() -> Iterator[None]:
    """Within this context `prove_gradient` compares, and a layer that fails is raised at the end.

    Where weights are cut across processes, a process that leaves a pass early would leave the others waiting for its
    part of the next layer. So a pass goes on, with zeros, and the first error is raised when all passes are made.
    """
    global _faults
    _faults = []
    try:
        yield
        if _faults:
            raise _faults[0]
    finally:
        _faults = None


def or_zeros(attend: Callable[[], Tensor], query: Tensor, value: Tensor) -> Tensor:
    """The output of `attend()` for these queries; within a proof an error is kept and the output is zero."""
    try:
        return attend()
    except Exception as error:
        if _faults is None:
            raise
        _faults.append(error)
        return query.new_zeros(*query.shape[:-1], value.size(-1))


def prove_gradient(attend: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> None:
    """Raises `Unsupported` where a kernel's gradient is not that of a loop over branches in float32.

    The gradient is that of half the squared output, so nothing is drawn. Once per plan and kind of layer.
    """
    proved = plan.cache.setdefault("proved", set())
    if _faults is None or attend is plain.by_branch or options in proved:
        return
    proved.add(options)
    real = (plan.group >= 0)[:, None, :, None]  # a kernel may give anything for padding
    found: list[list[Tensor]] = []
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        for function, dtype in ((plain.by_branch, torch.float32), (attend, query.dtype)):
            inputs = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
            output = function(*inputs, plan, options)
            gradients = torch.autograd.grad(output, inputs, output.detach() * real)
            found.append([gradient.float() for gradient in gradients])
    allowed = TOLERANCE_16_BIT if query.element_size() == 2 else TOLERANCE
    for right, other in zip(*found, strict=True):
        if not float((right - other).norm()) <= allowed * float(right.norm()):
            raise Unsupported("has another gradient with the kernel of this device")
