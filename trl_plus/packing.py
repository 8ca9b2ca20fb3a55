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

from trl_plus.attention import Unsupported, carry, register
from trl_plus.batching.layouts import Plan, common_beginning, make_plan

# What a batch may hold for a layout to know what to do with it
KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "use_cache", "output_router_logits"})
# Layers whose attention is a function of positions and of who may see whom
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class Planner:
    """Makes plans, and remembers the last: the reference scores the rows that the policy just did."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] = (None, None)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, layout: str, share: bool) -> Plan | None:
        """As `plan_rows`."""
        ids, mask, *rest = self._last
        if ids is not input_ids or mask is not attention_mask or rest[:-1] != [layout, share]:
            plan = plan_rows(input_ids, attention_mask, layout, share)
            self._last = input_ids, attention_mask, layout, share, plan
        return self._last[-1]


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
        plan: of the last fused call, None if its rows were left as they are.
        forward: the model's, as it is inside whatever an engine puts round it later.
    """

    def __init__(self, model: Any, layout: str, share: bool = True, planner: Planner | None = None) -> None:
        register()
        self._planner = planner or Planner()
        self.model, self.layout, self.share = model, layout, share
        self.before_batch: Callable[[RowLayout, dict[str, Any], Tensor], None] | None = None
        self.plan: Plan | None = None
        self._call: tuple[Plan, Tensor] | None = None
        self._patch_model(model)
        self._patch_backbone(model.base_model)

    # -- the model ----------------------------------------------------------------------------------------------------

    def _patch_model(self, model: Any) -> None:
        inner = model.forward

        @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
        def forward(module: Any, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any):
            if labels is not None:
                kwargs["labels"] = labels
            if not fused_lm_head:
                return inner(*args, **kwargs)
            if self.before_batch is not None and labels is not None and not args:
                self.before_batch(self, kwargs, labels)
            self.plan = None if args or "shift_labels" in kwargs else self._plan_for(kwargs)
            if self.plan is None:
                return inner(*args, **kwargs, fused_lm_head=True)
            return self._laid_out(inner, self.plan, kwargs)

        self.forward = model.forward = types.MethodType(forward, model)

    def _laid_out(self, inner: Callable, plan: Plan, kwargs: dict[str, Any]) -> ModelOutput:
        """The inner model on the layout, and its output by rows."""
        labels = kwargs.pop("labels")[:, 1:]
        mask = labels != -100
        self._call = plan, plan.gather[:, :-1][mask]
        try:
            output = inner(**kwargs, shift_labels=labels[mask][None], fused_lm_head=True)
        finally:
            self._call = None
        for name in PER_TOKEN:
            values = getattr(output, name, None)
            if values is not None:
                setattr(output, name, values.new_zeros(mask.shape).masked_scatter(mask, values))
        return output

    def _plan_for(self, kwargs: dict[str, Any]) -> Plan | None:
        if self.layout == "rows" or unknown_inputs(kwargs) or len(kwargs["input_ids"]) == 0:
            return None
        return self._planner(kwargs["input_ids"], kwargs["attention_mask"], self.layout, self.share)

    # -- its backbone -------------------------------------------------------------------------------------------------

    def _patch_backbone(self, backbone: Any) -> None:
        inner = backbone.forward
        names = list(inspect.signature(inner).parameters)

        @functools.wraps(type(backbone).forward)
        def forward(module: Any, *args: Any, **kwargs: Any):
            if self._call is None:
                return inner(*args, **kwargs)
            plan, predictors = self._call
            kwargs |= dict(zip(names, args, strict=False))  # a model's own forward may pass them by place
            ids = kwargs["input_ids"].reshape(-1)[plan.source]
            laid_out = {"input_ids": ids, "attention_mask": carry(plan), "position_ids": plan.positions}
            output = inner(**kwargs | laid_out)
            states = output.last_hidden_state
            output.last_hidden_state = states.reshape(-1, states.size(-1))[predictors][None]
            if getattr(output, "router_logits", None) is not None:  # a statistic over the rows as they were
                by_row = plan.gather.reshape(-1)
                output.router_logits = tuple(
                    layer.reshape(-1, layer.size(-1))[by_row] for layer in output.router_logits
                )
            return output

        backbone.forward = types.MethodType(forward, backbone)

    @contextmanager
    def using(self, layout: str) -> Iterator[None]:
        """Another layout for a while."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before


def unknown_inputs(kwargs: dict[str, Any]) -> set[str]:
    """What of a batch no layout knows how to lay out: images, embeddings, positions of the caller's own."""
    given = {name for name, value in kwargs.items() if value is not None} - {"labels"}
    unknown = given - KNOWN_INPUTS
    if "input_ids" not in given or kwargs.get("attention_mask") is None or kwargs["attention_mask"].ndim != 2:
        unknown.add("embeddings or a mask of its own")
    return unknown


def plan_rows(input_ids: Tensor, attention_mask: Tensor, layout: str, share: bool = True) -> Plan | None:
    """The plan of right-padded rows (R, L), on their device; None for rows that are padded elsewhere.

    One transfer from the device, of the lengths that every kernel has to be told anyway.
    """
    attended = attention_mask.bool()
    rows, width = attended.shape
    lengths = attended.sum(1)
    right = (attended.cumprod(1).sum(1) == lengths).all()[None]
    parts = [lengths, right]
    if share and rows % 2 == 0:
        parts.append(common_beginning(input_ids, attended))
    found = torch.cat(parts).cpu()
    lengths, right, common = found[:rows], bool(found[rows]), found[rows + 1 :]
    if not right:
        return None
    if not len(common):
        common = torch.zeros(rows, dtype=torch.long)
    return make_plan(lengths, common, width, layout).to(input_ids.device)


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


__all__ = ["Planner", "RowLayout", "Unsupported", "known_reason", "plan_rows", "unknown_inputs"]
