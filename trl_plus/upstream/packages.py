"""Optional packages that a setting needs, looked up before a model is loaded. Imports no torch."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

_GALORE, _APOLLO = ("galore_torch", "galore-torch"), ("apollo_torch", "apollo-torch")
_BITSANDBYTES, _TORCHAO = ("bitsandbytes", "bitsandbytes"), ("torchao", "torchao")
# optimizer of transformers: the module that it imports, and what to install
OPTIMIZERS = {
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "adamw_anyprecision": ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), _TORCHAO),
    **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    **dict.fromkeys((f"schedule_free_{name}" for name in ("radam", "adamw", "sgd")), ("schedulefree", "schedulefree")),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), _APOLLO),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), _GALORE),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), _GALORE
    ),
    **dict.fromkeys(
        (
            "ademamix", "ademamix_8bit", "adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
            "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
            "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
        ),
        _BITSANDBYTES,
    ),
}  # fmt: skip
# tracker: modules, each of which may be one of several, and what to install
TRACKERS = {
    "azure_ml": (("azureml",), "azureml-sdk"),
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "mlflow": (("mlflow",), "mlflow"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "clearml": (("clearml",), "clearml"),
    "dagshub": (("dagshub",), "dagshub mlflow"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "trackio": (("trackio",), "trackio"),
    "codecarbon": (("codecarbon",), "codecarbon"),
}
_FLASH = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}
_SWITCHES = {
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
    "load_in_4bit": _BITSANDBYTES,
    "load_in_8bit": _BITSANDBYTES,
    "deepspeed": ("deepspeed", "deepspeed"),
}


def installed(*modules: str) -> bool:
    """True if one of these top-level modules can be imported."""
    return any(importlib.util.find_spec(module) is not None for module in modules)


def missing_packages(values: Mapping[str, Any]) -> Iterator[str]:
    """One sentence with the pip command for each setting whose package is not installed.

    Args:
        values: settings by recipe key; those that are absent or empty need nothing.
    """
    optimizer = str(getattr(values.get("optim"), "value", values.get("optim")))
    module, package = OPTIMIZERS.get(optimizer, ("", ""))
    if module and not installed(module):
        yield f"`optim: {optimizer}` needs a package: pip install {package}, or set `optim: adamw_torch`."
    asked = values.get("report_to") or []
    for name in [asked] if isinstance(asked, str) else asked:
        modules, package = TRACKERS.get(name, ((), ""))
        if modules and not installed(*modules):
            yield f"`report_to: {name}` needs a package: pip install {package}, or set `report_to: none`."
    yield from _kernels(values)
    for key, (module, package) in _SWITCHES.items():
        if values.get(key) and not installed(module):
            yield f"`{key}: {_shown(values[key])}` needs a package: pip install {package}, or remove it."


def _kernels(values: Mapping[str, Any]) -> Iterator[str]:
    """transformers takes a kernel from its own package, or through `kernels` from the hub."""
    given = values.get("model_init_kwargs")
    given = given if isinstance(given, Mapping) else {}
    attention = given.get("attn_implementation") or values.get("attn_implementation")
    if installed("kernels"):
        return
    if isinstance(attention, str) and ("/" in attention or not installed(_FLASH.get(attention, "torch"))):
        own = ", or pip install flash-attn" if attention == "flash_attention_2" else ""
        yield (
            f"`attn_implementation: {attention}` needs a package: pip install kernels{own}, or set "
            "`attn_implementation: sdpa`."
        )
    if given.get("use_kernels"):
        yield "`model_init_kwargs: {use_kernels: true}` needs a package: pip install kernels, or remove it."


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
