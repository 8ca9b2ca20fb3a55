"""A PEFT model as its own reference: what is switched, and which first values come back for a pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

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
    """Whether two tensors are equal, of shards the parts that this process holds."""
    a, b = local(a), local(b)
    return a.shape == b.shape and bool(torch.equal(a.detach().to(b.device, b.dtype), b.detach()))


def counted(names: list[str]) -> str:
    """Such as "2 trainable weights (a.bias, b.bias)"; of more than three the first is named."""
    shown = ", ".join(names if len(names) <= 3 else [names[0], "..."])
    return f"{len(names)} trainable weight{'s' if len(names) > 1 else ''} ({shown})"
