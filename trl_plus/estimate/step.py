"""The peak memory of one training step, found by running it on tensors without data."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_plus.estimate.shapes import Shape
from trl_plus.forward.attention import carry
from trl_plus.forward.lm_head import TRANSFORMED_LOGITS, completion_log_probs, of_logits, outside_of_head, own_logits

# Labels of a ledger, and of an estimate's components
WEIGHTS, ADAPTER, GRADIENTS, ACTIVATIONS, HEAD = "weights", "adapter", "gradients", "activations", "logits"


@dataclass(frozen=True)
class Passes:
    """The passes of a step.

    Attributes:
        cuda: on a GPU, where TRL's fused LM head projects tiles of the scored tokens only.
        own_head: off CUDA, whether our LM head is used; TRL's scores every position otherwise.
        autocast: dtype of mixed precision, or None.
        reference: the reference scores the micro-batch, by a pass without gradient.
        accumulate: gradients of earlier micro-batches are there already.
        z_ref: KTO's passes before the first micro-batch, without gradient, by policy and reference.
    """

    cuda: bool
    own_head: bool
    autocast: torch.dtype | None
    reference: bool
    accumulate: bool
    z_ref: tuple[Shape, ...] = ()


class Ledger(TorchDispatchMode):
    """While active, every storage that an operation returns is counted from its making to its freeing.

    Storages are counted, not tensors: views and saved references cost nothing. What a kernel allocates inside itself
    is not seen.

    Attributes:
        peak: bytes alive at the worst moment since `restart`.
        at_peak: the same bytes by label.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = "activations"
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._alive: dict[int, tuple[int, str]] = {}
        self._by_label: Counter[str] = Counter()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self._by_label.total(), dict(self._by_label)

    def count(self, tensor: Tensor, label: str | None = None) -> None:
        """Count a tensor's storage under `label` (the current one if None), once."""
        storage = tensor.untyped_storage()
        key, label = id(storage), label or self.label
        if key in self._alive:
            return
        self._alive[key] = (storage.nbytes(), label)
        self._by_label[label] += storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        if (now := self._by_label.total()) > self.peak:
            self.peak, self.at_peak = now, dict(self._by_label)

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        self._freed(id(tensor.untyped_storage()))
        self.count(tensor, label)

    def _freed(self, key: int) -> None:
        size, label = self._alive.pop(key, (0, self.label))
        self._by_label[label] -= size

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within this context new storages are counted under `label`."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out


def peak_of_step(fake: FakeTensorMode, model: nn.Module, shape: Shape, passes: Passes) -> dict[str, int]:
    """Bytes alive at the peak of a micro-batch, by label; optimizer states and a second model are not among them.

    Args:
        fake: the mode under which `model` was built.
    """
    ledger = Ledger()
    with fake, ledger:
        for tensor in [*model.parameters(), *model.buffers()]:
            ledger.count(tensor, ADAPTER if tensor.requires_grad and _has_adapter(model) else WEIGHTS)
        trained = [p for p in model.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(lambda p: ledger.relabel(p.grad, GRADIENTS)) for p in trained]
        if passes.accumulate:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
                ledger.relabel(parameter.grad, GRADIENTS)
        ledger.restart()
        try:
            for mismatched in passes.z_ref:
                with torch.no_grad():
                    _log_probs(model, mismatched, passes, ledger, statistics=False)
            log_probs = _log_probs(model, shape, passes, ledger, statistics=True)
            if passes.reference:
                with torch.no_grad():
                    _log_probs(model, shape, passes, ledger, statistics=False)
            with ledger.labelled(HEAD):  # the backward pass begins in the head; `_log_probs` notices its end
                log_probs.sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in trained:
                parameter.grad = None
    return {label: size for label, size in ledger.at_peak.items() if size}


def _has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _log_probs(model: Any, shape: Shape, passes: Passes, ledger: Ledger, statistics: bool) -> Tensor:
    causal = model.get_base_model() if _has_adapter(model) else model
    autocast = nullcontext() if passes.autocast is None else torch.autocast("cpu", passes.autocast)
    with autocast:
        if causal.base_model is causal or outside_of_head(causal, weight_only=False) is not None:
            return _own_log_probs(causal, shape, ledger, statistics)
        hidden = _hidden(causal, shape)
        with ledger.labelled(HEAD):
            head = causal.get_output_embeddings()
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: setattr(ledger, "label", ACTIVATIONS))
            return _head(hidden, shape, head, passes, causal.config.get_text_config(), statistics)


def _own_log_probs(causal: Any, shape: Shape, ledger: Ledger, statistics: bool) -> Tensor:
    """Log-probabilities from the logits of the model's own forward, which a model without a fused LM head needs."""

    def after_backbone(module: Any, args: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            return output
        if shape.plan is not None:
            scored = torch.zeros(shape.scored, dtype=torch.long)
            states = output.last_hidden_state = states.reshape(-1, states.size(-1))[scored][None]
        ledger.label = HEAD
        if states.requires_grad:
            states.register_hook(lambda grad: setattr(ledger, "label", ACTIVATIONS))
        return output

    if shape.plan is None:
        ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        ids = torch.zeros(shape.plan.source.shape, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": carry(shape.plan), "position_ids": ids}
    handle = causal.base_model.register_forward_hook(after_backbone)
    try:
        with ledger.labelled(ledger.label):
            logits, _ = own_logits(causal.forward, inputs | {"use_cache": False})
            places = torch.zeros(2, shape.scored, dtype=torch.long)
            targets = torch.zeros(shape.scored, dtype=torch.long)
            log_probs = of_logits(logits[places[0], places[1]], targets, statistics)[0]
    finally:
        handle.remove()
    assert log_probs is not None
    return log_probs


def _hidden(causal: Any, shape: Shape) -> Tensor:
    """States (B, N, H): of every position of plain rows, of those that predict a scored token in a layout."""
    if shape.plan is None:
        ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
        mask = torch.ones_like(ids)
        return causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    ids = torch.zeros(shape.plan.source.shape, dtype=torch.long)
    states = causal.base_model(
        input_ids=ids, attention_mask=carry(shape.plan), position_ids=ids, use_cache=False
    ).last_hidden_state
    return states.reshape(-1, states.size(-1))[torch.zeros(shape.scored, dtype=torch.long)][None]


def _head(hidden: Tensor, shape: Shape, head: Any, passes: Passes, config: Any, statistics: bool) -> Tensor:
    """Log-probabilities by whichever LM head the run would use."""
    places = torch.zeros(2, shape.scored, dtype=torch.long)
    targets = torch.zeros(shape.scored, dtype=torch.long)
    if passes.cuda:
        return _TiledHead.apply(hidden[places[0], places[1]], head.weight)
    plain = all(getattr(config, name, None) is None for name in TRANSFORMED_LOGITS)
    if passes.own_head and plain and isinstance(head, nn.Linear):
        log_probs = completion_log_probs(hidden[places[0], places[1]], targets, head, statistics)[0]
        assert log_probs is not None
        return log_probs
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    outputs = ("entropy", "mean_logits", "is_top1") if statistics else ()
    flat = hidden.reshape(-1, hidden.size(-1))
    every = torch.zeros(len(flat), dtype=torch.long)
    return ChunkedLogProbFunction.apply(flat, head.weight, head.bias, every, 1.0, TILE_WIDTH, None, 1.0, outputs)[0]


# A tile of TRL's fused LM head: tokens, and columns of the vocabulary
TILE_TOKENS, TILE_WIDTH = 4096, 32768


class _TiledHead(torch.autograd.Function):
    """Allocates as TRL's fused LM head does on CUDA: a tile of logits, and float32 gradients of states and weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        _TiledHead._tile(hidden, weight, ctx.compute)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def _tile(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The buffers of one tile: logits, and the states and the part of the weight in the compute dtype."""
        tokens, width = min(len(hidden), TILE_TOKENS), min(len(weight), TILE_WIDTH)
        tile = hidden.new_empty(tokens, TILE_WIDTH, dtype=dtype)
        return tile, hidden[:tokens].to(dtype), weight[:width].to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        buffers = _TiledHead._tile(hidden, weight, ctx.compute)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
        if not ctx.needs_input_grad[1]:
            return grad_hidden.to(hidden.dtype), None
        grad_weight = torch.empty_like(weight, dtype=torch.float32)
        del buffers
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype)
