"""Whether a kernel's gradient is right, asked at the start of a run: log-probabilities say nothing of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trl_plus.attention import segments
from trl_plus.attention.options import Options
from trl_plus.batching.layouts import Plan

# Relative distance (L2) that a kernel's gradient may have from one computed in float32
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
_proving = False


class Unsupported(Exception):
    """A layer asks for something that no layout but `rows` can give; the text says what, to follow "its attention"."""


@contextmanager
def proving() -> Iterator[None]:
    """Within this context `prove_gradient` compares; outside it does nothing."""
    global _proving
    _proving = True
    try:
        yield
    finally:
        _proving = False


def prove_gradient(attend: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, options: Options) -> None:
    """Raises `Unsupported` where a kernel's gradient is not that of a loop over branches in float32.

    The gradient is that of half the squared output, so nothing is drawn. Once per plan and kind of layer.
    """
    proved = plan.cache.setdefault("proved", set())
    if not _proving or attend is segments.attend or options in proved:
        return
    proved.add(options)
    real = (plan.group >= 0)[:, None, :, None]  # a kernel may give anything for padding
    found: list[list[Tensor]] = []
    with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
        for function, dtype in ((segments.attend, torch.float32), (attend, query.dtype)):
            inputs = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
            output = function(*inputs, plan, options)
            gradients = torch.autograd.grad(output, inputs, output.detach() * real)
            found.append([gradient.float() for gradient in gradients])
    allowed = TOLERANCE_16_BIT if query.element_size() == 2 else TOLERANCE
    for right, other in zip(*found, strict=True):
        if not float((right - other).norm()) <= allowed * float(right.norm()):
            raise Unsupported("has another gradient with the kernel of this device")
