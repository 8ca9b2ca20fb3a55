"""Models of any library: what wraps them, how large they are, what they hold."""

import copy
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_peft_model

from trl_plus.upstream.deferred import import_peft

import_peft()  # `is_peft_model` would load it with bitsandbytes


def is_peft(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and is_peft_model(model)  # a path is neither


def plain_model(model: Any) -> Any:
    """The model inside DDP, FSDP1 or DeepSpeed (whose `config` is another), with its PEFT wrapper if it has one."""
    return extract_model_from_parallel(model)


def base_model(model: Any) -> Any:
    """The causal language model inside an engine and a PEFT wrapper, or the model itself."""
    model = plain_model(model)
    return model.get_base_model() if is_peft(model) else model


def build_again(model: Any) -> Any:
    """A model of the same class and configuration with other weights. Under ZeRO-3 they are cut at once."""
    return type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)


def adapter_file(model: Any, adapter: str) -> dict[str, Any]:
    """The weights that PEFT writes for an adapter, by the names that they have in its file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def ignore_bool_buffers(model: Any) -> None:
    """TRL's remedy, under `ignore_bias_buffers`, for DDP's refusal of boolean buffers (transformers issue 22482)."""
    model._ddp_params_and_buffers_to_ignore = [n for n, b in model.named_buffers() if b.dtype == torch.bool]


def without_checkpointing(model: Any, args: Any) -> Any:
    """Context in which gradient checkpointing is off, for passes without gradient."""
    from trl.models.utils import disable_gradient_checkpointing

    return disable_gradient_checkpointing(model, args.gradient_checkpointing_kwargs)


def size_of(parameter: Any) -> int:
    """Elements of a parameter. DeepSpeed ZeRO-3 leaves an empty tensor in its place; FSDP2 keeps its shape."""
    return getattr(parameter, "ds_numel", parameter.numel())


def parameters(model: Any) -> int:
    """The number of a model's parameters, over all processes that hold parts of them."""
    return sum(size_of(parameter) for parameter in model.parameters())


def adapter_of(model: Any) -> str:
    """The kind of a PEFT model's active adapter, such as "LORA"; "none" for a plain model."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return "none"
    kind = next(iter(configs.values())).peft_type
    return str(getattr(kind, "value", kind))
