"""Adapters and quantized weights: the reference that a base is, and what TRL and bitsandbytes must not do to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl_plus.trainers.upstream import is_peft


def drop_reference_adapter(model: Any) -> None:
    """Deletes the copy of a pretrained adapter that TRL makes as a reference."""
    if is_peft(model) and "ref" in model.peft_config:
        model.delete_adapter("ref")


def keep_trainable(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on a CPU.

    With AVX512-bfloat16 a forward pass in evaluation mode repacks them for inference only, and the next training step
    fails (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapter_layers(model: Any) -> list[Any] | None:
    """The modules that `reference_adapter` has to switch; None where the adapter is no matter of single layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning or config.is_adaption_prompt:
        return None
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


@contextmanager
def reference_adapter(model: Any, layers: list[Any]) -> Iterator[None]:
    """Within this context a PEFT model is its reference: the adapter "ref" if there is one, or its base alone.

    PEFT's own contexts switch `requires_grad` of every adapter weight off and on again: that takes longer than the
    switch itself, and weights of an adapter that were frozen on purpose would be trainable afterwards. No gradient is
    taken here, so only what the forward pass looks at is set. TRL trains one adapter, the same in all layers.
    """
    if "ref" in model.peft_config:
        name, value = "_active_adapter", ["ref"]
    else:
        name, value = "_disable_adapters", True
    before = [getattr(layer, name) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, name, value)
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            setattr(layer, name, kept)
