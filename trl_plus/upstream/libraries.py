"""Installed libraries: packages that a setting needs, engines with faults, and what is silenced. Imports no torch."""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from trl_plus.upstream.signatures import VersionError

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


# accelerate wrote an adapter under FSDP2, and loaded the optimizer from shards, wrongly before these versions
ADAPTERS, SHARDS = "1.15", "1.13"


# -- engines that would save or resume something else than what was trained -----------------------------------------


def check_fsdp2(adapter: bool, shards: bool) -> None:
    """Check that accelerate's FSDP2 resumes a run with the bits that it saved.

    Args:
        adapter: True if an adapter is trained.
        shards: True if checkpoints are saved in shards (`SHARDED_STATE_DICT`).

    Raises:
        VersionError: it does not. The text names the versions that do.
    """
    installed = version("accelerate")
    needed = ADAPTERS if adapter else SHARDS if shards else None
    if needed is None or Version(installed) >= Version(needed):
        return
    what = "an adapter" if adapter else "a sharded optimizer"
    raise VersionError(
        f"accelerate {installed} does not resume {what} under FSDP2 as it was saved. "
        f"Fix: pip install 'accelerate>={needed}'."
    )


# -- what the libraries of a run print that its user can do nothing about -------------------------------------------


def quiet_libraries() -> None:
    """Call before transformers and TRL are imported. Errors stay visible, and so do warnings of trl_plus."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # nothing is reported: `datasets` counts every load of a local file at a server, the hub client tells its versions
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # on every import without the package `kernels`, which is only an optional speed-up
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_deepspeed)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    # `merge` unties them where an adapter needs it
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
    # transformers asks for pinned memory by default, also where there is no accelerator to copy it to
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true", category=UserWarning)


def _deepspeed(record: logging.LogRecord) -> bool:
    """Move DeepSpeed's log from stdout, which holds results, to stderr; drop its line about a machine without a GPU."""
    for handler in logging.getLogger(record.name).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return not record.getMessage().startswith("Setting accelerator to CPU")
