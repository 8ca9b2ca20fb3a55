"""Models of any library: what wraps them, how large they are, what they hold."""

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_peft_model
from accelerate.utils.operations import ConvertOutputsToFp32


def is_peft(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and is_peft_model(model)  # a path is neither


def plain_model(model: Any) -> Any:
    """The model inside DDP, FSDP1 or DeepSpeed (whose `config` is another), with its PEFT wrapper if it has one."""
    return extract_model_from_parallel(model)


def base_model(model: Any) -> Any:
    """The causal language model inside an engine and a PEFT wrapper, or the model itself."""
    model = plain_model(model)
    return model.get_base_model() if is_peft(model) else model


def unbound(forward: Callable) -> Callable:
    """A module's forward as a function of the module: a deep copy that calls it computes with the copy's weights."""
    if isinstance(forward, types.MethodType):
        return forward.__func__
    return lambda _, *args, **kwargs: forward(*args, **kwargs)


def own_forward(module: Any) -> Callable:
    """A module's own forward, below the heads and layouts that trainers put on it, as a function of the module."""
    forward = module.forward
    while (below := _below(forward)) is not None:
        forward = below
    return unbound(forward)


def put_over(module: Any, forward: Callable) -> None:
    """Make a function of the module its forward. `own_forward` still finds the one that it has."""
    forward.below = module.forward  # type: ignore[attr-defined]
    module.forward = types.MethodType(forward, module)


def _below(forward: Any) -> Callable | None:
    """The forward that was there before `put_over` or TRL's fused LM head; None for any other."""
    function = getattr(forward, "__func__", forward)
    code = getattr(function, "__code__", None)
    if getattr(code, "co_name", "") == "_fused_forward":  # of TRL, which calls what its closure holds
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
        return cells["original_forward"].cell_contents if "original_forward" in cells else None
    return getattr(function, "below", None)


def leave_autocast(model: Any) -> None:
    """Take off the autocast that accelerate put on a model's forward for an earlier run in 16 bits."""
    wrapped = getattr(getattr(model, "forward", None), "__wrapped__", None)
    if isinstance(wrapped, ConvertOutputsToFp32) and hasattr(wrapped.model_forward, "__wrapped__"):
        model.forward = types.MethodType(wrapped.model_forward.__wrapped__, model)
        vars(model).pop("_original_forward", None)


def uncompiled(model: Any) -> Any:
    """The model inside `torch.compile`, or the model itself."""
    return extract_model_from_parallel(model, keep_torch_compile=False) if isinstance(model, torch.nn.Module) else model


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


def head_size(head: Any) -> int | None:
    """The number of logits of an LM head, or None.

    `out_features` of the copy that PEFT ties to an embedding (`ensure_weight_tying`) is the width of the states. The
    weight of a head in 4 bits, or cut by ZeRO-3, has another shape than its logits.
    """
    shape = tuple(getattr(getattr(head, "weight", None), "shape", ()))
    features = getattr(head, "out_features", None)
    swapped = len(shape) == 2 and shape == (getattr(head, "in_features", None), features)
    return (shape[0] if shape else None) if features is None or swapped else features


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
