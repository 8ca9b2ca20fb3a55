"""Adapters and quantized weights: switching an adapter, copying one, and keeping both trainable."""

import copy
import logging
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

from torch import Tensor

logger = logging.getLogger("trl_plus")
REF = "ref"  # TRL's name for the copy of a given adapter
# Initialisations of LoRA that take from the base weights what they put into the adapter: without the adapter the model
# is not what it was
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Options of LoRA of which a second adapter may have the same; `add_copy` resets those of the initialisation
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora", "use_dora",
    "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias",
    "trainable_token_indices", "target_parameters", "ensure_weight_tying", "runtime_config", "megatron_core",
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
INSIDE = {"base_layer", "original_module"}  # what a layer of PEFT wraps
_NO_TASK = "it needs the number of a task with every row, which preference rows do not have"
_NO_STATES = "it reads outputs of the model that a pass for log-probabilities does not compute"
_UNUSABLE = {
    "POLY": _NO_TASK,
    "MULTITASK_PROMPT_TUNING": _NO_TASK,
    "CPT": _NO_STATES,
    "XLORA": _NO_STATES,
    "SHADOW": _NO_STATES,
}


def keep_trainable(model: Any) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on a CPU.

    With AVX512-bfloat16 a forward pass in evaluation mode repacks them for inference only, and the next training step
    fails (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapter_layers(model: Any) -> list[Any] | None:
    """The modules that `reference_adapter` has to switch; None if the adapter does not consist of single layers."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    tuner = type(model.base_model)
    if getattr(tuner, "disable_adapter_layers", None) is not BaseTuner.disable_adapter_layers:
        return None  # virtual tokens, LLaMA-Adapter, X-LoRA's gates
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def adapter_tensors(layer: Any) -> dict[str, Tensor]:
    """Parameters and buffers of one layer that belong to adapters, and not to the module that it wraps."""
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if not INSIDE & set(name.split("."))}


def adapter_weights(model: Any) -> set[int]:
    """The ids of all tensors that belong to adapters of a PEFT model."""
    layers = adapter_layers(model)
    if layers is None:  # virtual tokens, LLaMA-Adapter
        inside = ("prompt_encoder.", ".adaption_prompt", ".adaption_gate")
        return {id(p) for name, p in model.named_parameters() if any(part in name for part in inside)}
    return {id(tensor) for layer in layers for tensor in adapter_tensors(layer).values()}


def check_kind(model: Any) -> None:
    """Refuses a kind of adapter that cannot be trained here, and warns of one whose scores depend on the batch."""
    kind = getattr(model.peft_type, "value", model.peft_type)
    if kind in _UNUSABLE:
        raise ValueError(
            f"Adapters of type {kind} do not work here: {_UNUSABLE[kind]}. Fix: use another type, such as LORA."
        )
    if kind == "LILY":
        logger.warning(
            "LILY averages its router over all tokens of a forward pass, padding included, so a row's score depends on "
            "the rows beside it: steps are not exact with it."
        )
    head = model.get_base_model().get_output_embeddings()
    if hasattr(head, "token_adapter"):  # trainable tokens: TRL's fused head asks for a bias, which PEFT's layer lacks
        if head.original_module.bias is not None:
            raise ValueError(
                "`trainable_token_indices` on an output layer with a bias leaves the bias out of the logits (PEFT). "
                "Fix: `modules_to_save` with the names of both layers."
            )
        head.bias = None
    if kind == "ADAPTION_PROMPT":  # LLaMA-Adapter holds on to the forward that the model had before ours
        model.base_model.forward = types.MethodType(_forward_of_now, model.base_model)


def _forward_of_now(tuner: Any, *args: Any, **kwargs: Any) -> Any:
    return tuner.model.forward(*args, **kwargs)


def needs_plain_rows(model: Any) -> str | None:
    """Why an adapter rules out every row layout but `rows`, or None."""
    if model.peft_type == "LILY":
        return "LILY averages over all tokens of a forward pass"
    if any(getattr(config, "alora_invocation_tokens", None) for config in model.peft_config.values()):
        return "aLoRA looks for its invocation tokens in plain rows"
    return None


@contextmanager
def reference_adapter(model: Any, layers: list[Any]) -> Iterator[None]:
    """Within this context a PEFT model is its reference: the adapter "ref" if there is one, or its base alone.

    PEFT's own contexts switch `requires_grad` of every adapter weight off and on again: that takes longer than the
    switch itself, and weights of an adapter that were frozen on purpose would be trainable afterwards. No gradient is
    taken here, so only what the forward pass looks at is set. TRL trains one adapter, the same in all layers.
    """
    if REF in model.peft_config:
        name, value = "_active_adapter", [REF]
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


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """PEFT's own context for adapters that are not single layers; `requires_grad` is afterwards as it was before."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


# -- the copy of a given adapter ------------------------------------------------------------------------------------


def check_given(model: Any, reference: bool) -> None:
    """Refuses a PEFT model that cannot be trained as it is, or whose copy would be mistaken for another adapter."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"No weight of the model is trainable: its adapter {model.active_adapter!r} was loaded for inference. "
            "Fix: load it with `PeftModel.from_pretrained(model, path, is_trainable=True)`."
        )
    if any(getattr(module, "merged", False) for module in adapter_layers(model) or ()):
        raise ValueError("The adapter is merged into its base, so it would not be trained. Fix: call "
                         "`model.unmerge_adapter()` before building the trainer.")  # fmt: skip
    if not reference or REF not in model.peft_config:
        return
    if not getattr(model, "reference_is_a_copy", False):
        raise ValueError(
            f"The model already has an adapter called {REF!r}, the name of the reference's copy of the trained "
            f"one. Fix: `model.delete_adapter({REF!r})` to have the adapter as given as the reference, or pass the "
            "model that you mean as `ref_model`."
        )
    model.delete_adapter(REF)  # an earlier trainer's


def holds_a_copy(model: Any) -> bool:
    """True if PEFT can hold a second adapter like the active one without touching the base or the first one.

    True for LoRA in its usual forms. Of every other adapter the first values are kept instead: an unknown option may
    change the base weights when a second adapter is added.
    """
    name = model.active_adapter
    if not isinstance(name, str) or model.peft_type != "LORA":
        return False
    layers = adapter_layers(model) or []
    alone = all(layer.active_adapters in ([name], []) for layer in layers)
    return alone and not unusual(model.peft_config[name])


def unusual(config: Any) -> set[str]:
    """Options of a LoRA configuration that are set and might do more to a model than add weights of its own."""
    return {
        field.name
        for field in fields(config)
        if field.name not in _HARMLESS and getattr(config, field.name) not in (_default(field), None)
    }


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def add_copy(model: Any) -> None:
    """Adds the adapter "ref", like the active one and frozen; `fill_copy` gives it its weights."""
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    config.init_lora_weights, config.inference_mode = True, True  # another initialisation may change the base weights
    for option in ("loftq_config", "eva_config", "corda_config", "lora_ga_config"):
        if getattr(config, option, None):
            setattr(config, option, {} if option == "loftq_config" else None)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.add_adapter(REF, config)
    model.reference_is_a_copy = True
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name, False))


def fill_copy(model: Any, layers: list[Any]) -> None:
    """Gives "ref" every weight, dtype and setting of the active adapter.

    Raises:
        ValueError: a weight of the adapter has no counterpart.
    """
    given = model.active_adapter
    for layer in layers:
        tensors = adapter_tensors(layer)
        for name, tensor in tensors.items():
            parts = name.split(".")
            if given not in parts:
                continue
            twin = tensors.get(".".join(REF if part == given else part for part in parts))
            if twin is None or local(twin).shape != local(tensor).shape:
                raise ValueError(
                    f"The adapter {given!r} cannot be copied for the reference: {name} of a {type(layer).__name__} has "
                    "no counterpart in the copy. Fix: pass the reference as `ref_model`."
                )
            if local(tensor) is tensor:
                twin.data = tensor.detach().clone()
            else:
                local(twin).data.copy_(local(tensor).data)
        for settings in vars(layer).values():  # such as a scale that was set by hand
            if isinstance(settings, dict) and isinstance(settings.get(given), (int, float, bool)):
                settings[REF] = settings[given]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds under DeepSpeed ZeRO-3 or FSDP2; otherwise the tensor itself."""
    tensor = getattr(tensor, "ds_tensor", tensor)
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def moves_base(model: Any) -> bool:
    """True if putting the adapter on has changed the base weights."""
    names = [str(getattr(config, "init_lora_weights", "")).lower() for config in model.peft_config.values()]
    return any(name.startswith(_MOVES_BASE) for name in names)
