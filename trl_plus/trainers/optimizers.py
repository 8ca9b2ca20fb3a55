"""Optimizers that cannot be made or that change what a step is, found before the model is loaded."""

from typing import Any

import torch
from transformers import Trainer

from trl_plus.upstream.libraries import missing_packages

_LOW_RANK = ("galore", "apollo")
_WITH_PACKAGES = ("report_to", "use_liger_kernel", "deepspeed", "model_init_kwargs")
_CUDA_ONLY = ("lomo", "adalomo", "galore_adamw_8bit", "galore_adamw_8bit_layerwise")


def optimizer_name(args: Any) -> str:
    """The name of `optim` as it is written in a recipe."""
    return str(getattr(args.optim, "value", args.optim))


def refuse_missing(args: Any) -> None:
    """Refuse a training configuration that transformers would refuse after the model is loaded.

    Raises:
        ImportError: the package of an optimizer, tracker or kernel is missing or too old.
        ValueError: a setting that the optimizer needs is missing, or contradicts it.
    """
    name = optimizer_name(args)
    asked = {key: getattr(args, key, None) for key in _WITH_PACKAGES}
    problems = list(missing_packages({**asked, "optim": name}))
    if problems:
        raise ImportError(" ".join(problems))
    if name.startswith(_LOW_RANK) and args.optim_target_modules is None:
        raise ValueError(
            f"`optim: {name}` needs `optim_target_modules`: set it to all-linear, or to a list of names of modules."
        )
    if name.endswith("layerwise") and args.gradient_accumulation_steps != 1:
        raise ValueError(
            f"`optim: {name}` steps inside each backward pass and cannot accumulate: set "
            "`gradient_accumulation_steps: 1`."
        )
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:  # too old, or a part of it is missing
        raise ImportError(f"`optim: {name}` cannot be used: {str(error).splitlines()[0]}") from error
    except Exception:  # it needs the model, which is yet to come
        return


def refuse_without_gpu(args: Any) -> None:
    """Raises a ValueError for an optimizer that works on CUDA only, where there is none."""
    name = optimizer_name(args)
    if name in _CUDA_ONLY and (args.use_cpu or not torch.cuda.is_available()):
        raise ValueError(f"`optim: {name}` needs a CUDA GPU: set `optim: adamw_torch`, or run it on one.")


def refuse_foreign_optimizer(optimizer: Any, model: Any) -> None:
    """Raises a ValueError for an optimizer that was given and holds none of the weights that are to be trained."""
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return
    held = {id(parameter) for group in groups for parameter in group["params"]}
    if not any(parameter.requires_grad and id(parameter) in held for parameter in model.parameters()):
        raise ValueError(
            "The optimizer in `optimizers` holds none of the model's trainable weights, so nothing would be trained: "
            "it was made for another model, or before an adapter was put on. Fix: make it of the parameters of the "
            "model that is passed (with an adapter, of `get_peft_model(model, peft_config)`), or override "
            "`create_optimizer`."
        )


def updates_in_backward(args: Any) -> str | None:
    """One sentence on what does not hold with an optimizer that changes the weights inside each backward pass."""
    name = optimizer_name(args)
    if name not in ("lomo", "adalomo") and not name.endswith("layerwise"):
        return None
    cut = args.gradient_accumulation_steps > 1 or getattr(args, "tokens_per_device", None)
    lost = "its steps are not exact: each micro-batch is a step by itself, at weights that the one before changed"
    fix = "Fix: set `gradient_accumulation_steps: 1` and remove `tokens_per_device`."
    kept = "A step with a non-finite gradient cannot be left out, and max_grad_norm does nothing."
    return f"`optim: {name}` changes weights inside each backward pass{f', so {lost}. {fix}' if cut else '.'} {kept}"
