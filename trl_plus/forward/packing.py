"""A model that computes every token once: rows are laid out before its backbone and taken apart after it.

Nothing else changes: the model is called as before, with padded rows and labels, and gives log-probabilities of the
shape of the rows. Only the states that predict a label leave the backbone, so the LM head sees nothing else.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from trl_plus.forward.attention import Unsupported, carry, register
from trl_plus.forward.layouts import Plan, Planner, plan_rows
from trl_plus.forward.rope import lay_out, own_factors
from trl_plus.upstream.models import own_forward, put_over, unbound


class AllLabelled(Tensor):
    """Integer labels of which none is -100.

    A head selects the states that a label asks for by a boolean mask, which waits for the device to count them, once
    more in the backward pass. A row layout hands over only such states. These labels know it, so the head's
    `labels != -100`, `states[mask]` and `masked_scatter(mask, ...)` become views.
    """

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


# What a batch may hold for a layout to know what to do with it
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "use_cache", "output_router_logits"})
# Layers whose attention is a function of positions and of who may see whom
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class RowLayout:
    """Installed on a causal model that already carries a fused LM head.

    Args:
        model: the model without its PEFT wrapper.
        layout: "packed", "shared" or "rows".
        share: keep the common beginning of a group once; without, each row is whole (dropout would be shared, too).
        planner: makes the plans; one for all models that score the same rows.

    Attributes:
        layout: what is in use; "rows" switches off everything here.
        before_batch: called with this and the arguments of each fused call, before it; may change `layout`.
        on_failure: called with this and the error of a fused call on the layout. If it returns, the call is repeated on
            plain rows. None lets the error through.
        plan: of the last fused call, None if its rows were left as they are.
        forward: the model's, as it is inside whatever an engine puts round it later.
    """

    def __init__(self, model: Any, layout: str, share: bool = True, planner: Planner | None = None) -> None:
        register()
        self._planner = planner or Planner()
        self.model, self.layout, self.share = model, layout, share
        self.before_batch: Callable[[RowLayout, dict[str, Any], Tensor], None] | None = None
        self.on_failure: Callable[[RowLayout, Exception], None] | None = None
        self.plan: Plan | None = None
        self._call: tuple[Plan, Tensor] | None = None
        self.factors = own_factors(model)
        self._patch_model(model)
        self._patch_backbone(model.base_model)

    # -- the model ----------------------------------------------------------------------------------------------------

    def _patch_model(self, model: Any) -> None:
        inner = unbound(model.forward)

        @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
        def forward(module: Any, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any):
            if labels is not None:
                kwargs["labels"] = labels
            if not fused_lm_head:
                return inner(module, *args, **kwargs)
            if module is not model:  # a deep copy, whose rows nobody plans
                return inner(module, *args, **kwargs, fused_lm_head=True)
            if self.before_batch is not None and labels is not None and not args:
                self.before_batch(self, kwargs, labels)
            planned = None if args or labels is None or "shift_labels" in kwargs else self._plan_for(kwargs)
            self.plan = planned and planned[0]
            if planned is not None:
                try:
                    return self._laid_out(functools.partial(inner, module), *planned, dict(kwargs))
                except Exception as error:
                    if self.on_failure is None or not recoverable(error):
                        raise
                    self.on_failure(self, error)
                    self.plan = None
            return inner(module, *args, **kwargs, fused_lm_head=True)

        put_over(model, forward)
        self.forward = model.forward

    def _laid_out(self, inner: Callable, plan: Plan, where: Tensor, kwargs: dict[str, Any]) -> ModelOutput:
        """The inner model on the layout, and its output by rows; `where` are the labelled tokens of the rows."""
        labels = kwargs.pop("labels")[:, 1:]
        targets = labels.reshape(-1).index_select(0, where)
        self._call = plan, plan.gather[:, :-1].reshape(-1).index_select(0, where)
        try:
            output = inner(**kwargs, shift_labels=all_labelled(targets[None]), fused_lm_head=True)
        finally:
            self._call = None
        for name in PER_TOKEN:
            values = getattr(output, name, None)
            if values is not None:
                by_row = values.new_zeros(labels.numel()).index_copy(0, where, values.reshape(-1))
                setattr(output, name, by_row.view(labels.shape))
        return output

    def _plan_for(self, kwargs: dict[str, Any]) -> tuple[Plan, Tensor] | None:
        if self.layout == "rows" or unknown_inputs(kwargs) or len(kwargs["input_ids"]) == 0:
            return None
        return self._planner(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"], *self.setting)

    @property
    def setting(self) -> tuple[str, bool, Any]:
        """The settings that a plan depends on, besides its rows."""
        return self.layout, self.share, self.factors

    # -- its backbone -------------------------------------------------------------------------------------------------

    def _patch_backbone(self, backbone: Any) -> None:
        inner = unbound(backbone.forward) if backbone is self.model else own_forward(backbone)
        names = list(inspect.signature(types.MethodType(inner, backbone)).parameters)

        @functools.wraps(type(backbone).forward)
        def forward(module: Any, *args: Any, **kwargs: Any):
            if self._call is None or module is not backbone:
                return inner(module, *args, **kwargs)
            plan, predictors = self._call
            kwargs |= dict(zip(names, args, strict=False))  # a model's own forward may pass them by place
            ids = kwargs["input_ids"].reshape(-1)[plan.source]
            lay_out(backbone, plan)
            laid_out = {"input_ids": ids, "attention_mask": carry(plan), "position_ids": plan.positions}
            output = inner(module, **kwargs | laid_out)
            states = output.last_hidden_state
            # not by `[...]`, whose backward pass sorts the indices on CUDA
            output.last_hidden_state = states.reshape(-1, states.size(-1)).index_select(0, predictors)[None]
            if getattr(output, "router_logits", None) is not None:  # a statistic over the rows as they were
                by_row = plan.gather.reshape(-1)
                output.router_logits = tuple(
                    layer.reshape(-1, layer.size(-1)).index_select(0, by_row) for layer in output.router_logits
                )
            return output

        put_over(backbone, forward)

    @contextmanager
    def using(self, layout: str) -> Iterator[None]:
        """Another layout for a while."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before


def unknown_inputs(kwargs: dict[str, Any]) -> set[str]:
    """Inputs of a batch that no layout can lay out: images, embeddings, positions of the caller's own."""
    given = {name for name, value in kwargs.items() if value is not None} - {"labels"}
    unknown = given - KNOWN_INPUTS
    if "input_ids" not in given or kwargs.get("attention_mask") is None or kwargs["attention_mask"].ndim != 2:
        unknown.add("embeddings or a mask of its own")
    return unknown


def recoverable(error: Exception) -> bool:
    """Return True if plain rows may work after this error.

    They cannot if no memory is left, processes have parted, or a GPU is lost.

    A fault inside a CUDA kernel is noticed later, by another call, and ends the process's use of the device.
    """
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error:" in str(error)
    parted = isinstance(error, getattr(torch.distributed, "DistError", ()))
    return not (lost or parted or isinstance(error, torch.OutOfMemoryError | MemoryError))


def in_short(error: BaseException) -> str:
    """The type of an error and the beginning of its first line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def known_reason(model: Any) -> str | None:
    """Why a model's architecture rules out every layout but `rows`, or None if it may work."""
    config = model.config
    if config.get_text_config() is not config:
        return "the model is made of several (text and images, or encoder and decoder)"
    if getattr(model, "base_model", model) is model:
        return "the model has no backbone apart from its head"
    layers = set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS
    if layers:
        return f"the model has layers that are no plain attention ({', '.join(sorted(layers))})"
    return None


__all__ = [
    "Planner", "RowLayout", "Unsupported", "in_short", "known_reason", "plan_rows", "recoverable", "unknown_inputs",
]  # fmt: skip
