"""The reference of a run: how it is kept, and whether the policy equals it when training begins.

The reference is a model that was given, a frozen copy of the policy, a second model that TRL loads, or the policy
itself: with its adapter switched off, or with first values put back.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_plus.step.mismatched import Z_REF
from trl_plus.trainers.adapters import (
    INSIDE,
    REF,
    adapter_layers,
    adapter_tensors,
    adapter_weights,
    fill_copy,
    local,
    moves_base,
    reference_adapter,
    switched_off,
)
from trl_plus.upstream.models import build_again, is_peft, uncompiled

logger = logging.getLogger("trl_plus")
# Nats per token by which the same weights may differ when a row is scored in another batch
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 2e-2
# In 16 bits a token's own rounding shows in short rows: nats times the square root of the row's tokens. Measured on
# SmolLM2-135M in bfloat16, rows alone against rows in a padded batch: at most 0.25 for 1 token, 0.09 for 4, 0.02 for 16
ROUNDING_16_BIT = 0.3
ROW = "a log-ratio"


def copy_as_reference(model: Any, peft_config: Any) -> PreTrainedModel | None:
    """A frozen copy of a model given as an instance, or None if no copy is the right reference.

    TRL would load the checkpoint named in the model's config again, which is another model if this one was edited
    in memory and no model at all if it was built there. Adapters need none: they are switched off. A model given
    as a path is loaded twice by TRL, which is right.
    """
    if not isinstance(uncompiled(model), PreTrainedModel) or peft_config is not None or is_peft(model):
        return None
    return frozen_copy(uncompiled(model))


def frozen_copy(model: Any) -> Any:
    """A copy of a model in evaluation mode, all of its parameters frozen. A ZeRO-3 model is copied shard by shard.

    Raises:
        ValueError: a ZeRO-3 model is not the one that its configuration describes.
    """
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    copied = _copy_of_shards(model) if partitioned else copy.deepcopy(model)
    return copied.eval().requires_grad_(False)


@torch.no_grad()
def _copy_of_shards(model: Any) -> Any:
    """A second model of the same configuration, cut in the same way, with this process's shards copied into it."""
    with torch.random.fork_rng(devices=[]):
        copied = build_again(model)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(copied, kind)()), dict(getattr(model, kind)())
        odd = sorted(ours.keys() ^ theirs.keys())
        odd += [name for name in ours.keys() & theirs.keys() if not _alike(ours[name], theirs[name])]
        if odd:
            raise ValueError(
                "Under DeepSpeed ZeRO-3 the reference is built from the model's configuration, and this model was "
                f"changed since ({odd[0]} differs): pass `ref_model`, give the model as a path, or use FSDP2."
            )
        for name, tensor in ours.items():
            _shard(tensor).copy_(_shard(theirs[name]))
    return copied


def _shard(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds."""
    return getattr(tensor, "ds_tensor", tensor).data


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    shapes = [getattr(tensor, "ds_shape", tensor.shape) for tensor in (a, b)]
    return shapes[0] == shapes[1] and _shard(a).shape == _shard(b).shape and _shard(a).dtype == _shard(b).dtype


class OwnReference:
    """A PEFT model as its own reference.

    The reference of a new adapter is the model without it, that of a given adapter is the adapter as given: a second
    adapter "ref", or, if PEFT cannot hold two, the first values of its weights, put back for the reference's passes.
    Trainable weights outside the adapter (biases, unfrozen norms) have their first values in all of them.

    Attributes:
        given: the adapter came with the model.
        first: name -> (parameter, its value when the reference was made).
    """

    def __init__(self, model: Any, given: bool):
        self.model, self.given, self.layers = model, given, adapter_layers(model)
        self.copied = given and REF in model.peft_config
        self.switched_off = not given and not moves_base(model)
        if self.copied:
            fill_copy(model, self.layers)
        self._adapter = adapter_weights(model)
        self.first: dict[str, tuple[Tensor, Tensor]] = {}
        self._noisy = [] if self.switched_off else self._adapter_modules()
        self.keep()

    def _adapter_modules(self) -> list[Any]:
        """The modules of the adapter, whose dropout and noise a reference is without."""
        roots = [getattr(self.model, "prompt_encoder", None)] if self.layers is None else self.layers
        return [
            module
            for root in roots
            if root is not None
            for name, module in root.named_modules()
            if not INSIDE & set(name.split("."))
        ]

    def keep(self) -> None:
        """Keeps the values of trainable weights that the reference needs and that are not kept yet."""
        switched = self.copied or self.switched_off
        for name, parameter in self.model.named_parameters():
            adapter = id(parameter) in self._adapter  # all of it: AdaLoRA changes weights that it does not train
            if not switched if adapter else parameter.requires_grad:
                self.first.setdefault(name, (parameter, parameter.detach().clone()))

    @property
    def outside(self) -> list[str]:
        """Names of the trainable weights outside the adapter."""
        return [name for name, (parameter, _) in self.first.items() if id(parameter) not in self._adapter]

    def __str__(self) -> str:
        if self.switched_off:
            name = "the model with its adapter switched off"
        else:
            name = (
                "a frozen copy of the adapter as given" if self.given else "the model as it was before the first step"
            )
        kept = self.outside
        return f"{name}, and the first values of {counted(kept)} outside it" if kept else name

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model is the reference. For passes without gradient, and none within a backward."""
        if not (self.copied or self.switched_off):
            switch = nullcontext()
        elif self.layers is None:
            switch = switched_off(self.model)
        else:
            switch = reference_adapter(self.model, self.layers)
        training = [module for module in self._noisy if module.training]
        with switch, self._first_values():
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                for module in training:
                    module.training = True

    @contextmanager
    def _first_values(self) -> Iterator[None]:
        """Puts the first values in the place of the current ones, which stay where autograd remembers them.

        A parameter is pointed to other memory and back: nothing is copied, and no version counter moves.
        """
        current = [(parameter, parameter.data) for parameter, _ in self.first.values()]
        if current:
            torch.clear_autocast_cache()  # it holds the current values in 16 bits, under the parameter's name
        try:
            for name, (parameter, value) in self.first.items():
                if (value.device, value.dtype) != (parameter.device, parameter.dtype):  # moved since
                    value = value.to(parameter.device, parameter.dtype)
                    self.first[name] = (parameter, value)
                parameter.data = value
            yield
        finally:
            for parameter, value in current:
                parameter.data = value
            if current:
                torch.clear_autocast_cache()

    def differences(self) -> list[str]:
        """Names of the weights whose values are not the reference's; empty for an adapter that is switched off."""
        found = [name for name, (parameter, value) in self.first.items() if not same(parameter, value)]
        for layer in self.layers if self.copied else ():
            tensors = adapter_tensors(layer)
            for name, tensor in tensors.items():
                twin = tensors.get(".".join(REF if p == self.model.active_adapter else p for p in name.split(".")))
                if twin is not None and not same(tensor, twin):
                    found.append(name)
        return found

    def nonzero_start(self) -> str | None:
        """A clause on why the adapter changes the model before it is trained, or None if it should not."""
        config = self.model.peft_config[self.model.active_adapters[0]]
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            return f"{kind} puts virtual tokens before every row"
        for name, value in vars(config).items():
            if not name.startswith("init_") or not name.endswith("weights"):
                continue
            if value is False or (isinstance(value, str) and value not in ("gaussian", "eva", "orthogonal", "mica")):
                return f"{kind} does not start at zero (`{name}={value!r}`)"
        return None

    def passes(self, model: Any) -> Callable[..., Any]:
        """The reference as a function: forward passes of `model`, the same weights with whatever wraps them."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.active():
                return model(*args, **kwargs)

        return forward


def same(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are equal, of shards the parts that this process holds."""
    a, b = local(a), local(b)
    return a.shape == b.shape and bool(torch.equal(a.detach().to(b.device, b.dtype), b.detach()))


def counted(names: list[str]) -> str:
    """Such as "2 trainable weights (a.bias, b.bias)"; of more than three the first is named."""
    shown = ", ".join(names if len(names) <= 3 else [names[0], "..."])
    return f"{len(names)} trainable weight{'s' if len(names) > 1 else ''} ({shown})"


def random_settings(model: Any) -> list[str]:
    """Settings of a model's configuration that make a training pass random although no dropout module is active."""
    settings = model.config.get_text_config().to_dict()
    random = ("drop", "pdrop", "noise", "jitter")
    return [
        f"`{name}: {value}`"
        for name, value in settings.items()
        if isinstance(value, float) and value > 0 and any(part in name for part in random)
    ]


def differences(policy: Any, reference: Any) -> list[str]:
    """Names of the weights of two like models that differ."""
    theirs = dict(reference.named_parameters())
    return [name for name, mine in policy.named_parameters() if name in theirs and not same(mine, theirs[name])]


class StartCheck:
    """The reference of a trainer by name, and a check: at the first step of a fresh run the policy must equal it.

    Args:
        trainer: its models, `own_reference`, `args`, `state` and `accelerator` are read.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._checked: frozenset[str] = frozenset()

    def announce(self) -> None:
        """Says once which reference it is, as a warning: a plain sentence, seen without any set-up of logging."""
        if self._trainer.accelerator.is_main_process:
            logger.warning("Reference: %s.", self.name(), extra={"note": True})

    def name(self) -> str:
        trainer = self._trainer
        if trainer.reference_in_data:
            return "its log-probabilities are in the data, so no model is loaded for it"
        if trainer.reference_is_given:
            name = "the `ref_model` that was given"
        elif trainer.own_reference is not None:
            name = str(trainer.own_reference)
        elif trainer.ref_model is None:
            name = "the model as it was before the first step"
        else:
            name = "a second, frozen model with the weights that training starts from"
        return f"{name}, its log-probabilities precomputed" if trainer.precompute_ref_logps else name

    @torch.no_grad()
    def look(self, log_ratio: Tensor, length: Tensor, what: str = ROW) -> None:
        """Warns if the log-ratios of a micro-batch of the first step, (R,) over `length` tokens each, are not zero.

        The first micro-batch of each `what` is looked at; a run is warned once.
        """
        trainer = self._trainer
        if what in self._checked or not trainer.model.training:
            return
        self._checked |= {what}
        args, model = trainer.args, trainer.model
        noisy = args.neftune_noise_alpha or any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()
        )
        resumed, main = trainer.state.global_step > 0, trainer.accelerator.is_main_process
        if resumed or trainer.reference_is_given or noisy or not main:
            return
        length = length.clamp(min=1).to(log_ratio.device)
        gaps = log_ratio.abs() / length
        half = args.bf16 or args.fp16 or any(p.element_size() < 4 for p in model.parameters())
        allowed = (ROUNDING_16_BIT / length.sqrt()).clamp(min=TOLERANCE_16_BIT) if half else TOLERANCE
        if not bool((gaps <= allowed).all()):
            self._checked |= {ROW, Z_REF}
            logger.warning(
                "The policy is not its reference at the first step: %s is %.2g nats per token instead of 0. %s",
                what,
                float(gaps.max()),
                self.cause(),
            )

    def look_at_rewards(self, metrics: dict[str, float], inputs: dict[str, Any]) -> None:
        """The same if the loss is TRL's: its rewards are beta times the mean log-ratios of a micro-batch."""
        rewards, beta = [metrics[n] for n in ("rewards/chosen", "rewards/rejected") if n in metrics], self._trainer.beta
        if beta:
            length = inputs["completion_mask"].sum(-1).float().mean()
            self.look(torch.tensor(rewards) / beta, length.cpu().expand(len(rewards)))

    def cause(self) -> str:
        """One or two sentences on why the policy is not its reference, found by comparing their weights."""
        trainer = self._trainer
        own, reference, found = trainer.own_reference, trainer.ref_model, random_settings(trainer.model)
        if own is not None:
            changed = own.differences()
        else:
            unwrap = trainer.accelerator.unwrap_model
            changed = [] if reference is None else differences(unwrap(trainer.model), unwrap(reference))
        if changed:
            return (
                f"After the trainer was built {counted(changed)} changed. Fix: change the model before, or pass the "
                "`ref_model` that you mean."
            )
        if own is not None and own.switched_off and (start := own.nonzero_start()):
            return (
                f"{start}, so the model with its adapter is not the model without it, which is the reference of a new "
                "adapter. Fix: pass `get_peft_model(model, peft_config)` as `model` to start from the adapter as it is."
            )
        if found:
            return f"The model computes at random in training: {', '.join(found)} in its configuration. Fix: set 0."
        if own is not None and own.switched_off:
            return "The adapter was changed after the trainer was built. Fix: change it before, and pass it in `model`."
        if trainer.precompute_ref_logps:
            return (
                "The log-probabilities of the reference were computed earlier, from other weights or in other batches."
            )
        return "Their weights are equal, so the model scores the same row differently from one pass to the next."
