"""Entries of transformers' `AttentionInterface` that read a row layout from the attention mask.

A layout comes in with the attention mask, the one thing that every model hands from its forward to each layer, and that
checkpointed layers get again in the backward pass. Transformers passes a mask of four dimensions on untouched. A call
without a layout goes to the function that was registered before, with the arguments it came with.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from trl_plus.forward.attention import cuda, plain
from trl_plus.forward.attention.plain import Options
from trl_plus.forward.layouts import Plan

KNOWN = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
EAGER = "trl_plus_eager"  # for models whose attention is a function of their own file, which no registry knows


def carry(plan: Plan) -> Tensor:
    """A mask that brings the plan to every layer, as its attribute `plan`."""
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=plan.source.device)
    mask.plan = plan
    return mask


def register() -> None:
    """Puts our functions before transformers' own in the registry. Once is enough, and twice does no harm."""
    functions = AttentionInterface()
    for name in KNOWN:
        if name in functions and not hasattr(functions[name], "before_layouts"):
            AttentionInterface.register(name, _with_layouts(functions[name], name))
    AttentionInterface.register(EAGER, _with_layouts(_eager, EAGER))
    AttentionMaskInterface.register(EAGER, eager_mask)


def _with_layouts(before: Callable, name: str) -> Callable:
    @functools.wraps(before)
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        plan = getattr(attention_mask, "plan", None)
        if plan is None:
            if getattr(attention_mask, "shape", None) == (1, 1, 1, 1) and query.size(2) > 1:
                raise Unsupported("does not get the mask that its model was given")
            return before(module, query, key, value, attention_mask, **kwargs)
        query, key, value = as_autocast(query, key, value)
        output = or_zeros(lambda: laid_out(module, query, key, value, plan, kwargs), query, value)
        return output.transpose(1, 2).contiguous(), None

    def laid_out(module: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, kwargs: dict[str, Any]) -> Tensor:
        _refuse(kwargs)
        options = Options(
            scaling=kwargs.get("scaling"),
            dropout=kwargs.get("dropout", 0.0),
            window=kwargs.get("sliding_window"),
            softcap=kwargs.get("softcap"),
        )
        if name.startswith("flash") and len(plan.source) == 1:

            def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options) -> Tensor:
                return cuda.flash(before, module, q, k, v, plan, kwargs)[0].transpose(1, 2)
        else:
            attend = backend(query, value, plan, options)
        prove_gradient(attend, query, key, value, plan, options)
        return attend(query, key, value, plan, options)

    attention.before_layouts = before
    return attention


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As scaled-dot-product attention casts what it gets under autocast; kernels outside its list do not.

    Without it, float32 weights under bf16 autocast give queries in float32 (rotary embeddings) and values in bfloat16.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def backend(query: Tensor, value: Tensor, plan: Plan, options: Options) -> Callable:
    """The fastest function that does what is asked, on the device at hand."""
    if query.device.type == "cpu":
        return plain.by_branch
    if query.device.type != "cuda":
        return plain.by_mask
    if cuda.takes_varlen(query, value, plan, options):
        return cuda.varlen
    return plain.by_branch if options.dropout else cuda.flex


def _refuse(kwargs: dict[str, Any]) -> None:
    if kwargs.get("s_aux") is not None:
        raise Unsupported("has sinks")
    if kwargs.get("position_bias") is not None:
        raise Unsupported("adds a bias by position (ALiBi)")
    if kwargs.get("is_causal") is False:
        raise Unsupported("is not causal")
    if kwargs.get("output_attentions"):
        raise Unsupported("is asked for its weights")


def _eager(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The attention function of the model's own file."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def name_eager_attention(model: Any) -> str | None:
    """Gives a model with eager attention a registered name for it. Why it cannot have one, or None.

    "eager" is no entry of transformers' registry but a function of each model's own file.
    """
    if model.config._attn_implementation != "eager":
        return None
    if not hasattr(sys.modules[type(model.base_model).__module__], "eager_attention_forward"):
        return "the model's attention does not go through transformers' AttentionInterface"
    register()
    model.set_attn_implementation(EAGER)
    return None


# Relative distance (L2) that a kernel's gradient may have from one computed in float32
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
# -- proof at the start of a run that a kernel's gradient is right, of which log-probabilities say nothing ----------


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
