"""The places where trl_plus depends on internals of TRL and transformers, checked before either is used.

An untested version is tried. If all of these places have their known shape, the run continues; if one has moved, the
error names it and the versions that work. Importing this file imports neither library.
"""

import inspect
import logging
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from trl_plus.upstream.deferred import import_peft

logger = logging.getLogger("trl_plus")

# Oldest and newest versions that the tests ran with (docs/compatibility.md)
TESTED = {"trl": ("1.15", "1.16"), "transformers": ("5.4", "5.24")}
TRAINERS = {"DPOTrainer": "trl.trainer.dpo_trainer", "KTOTrainer": "trl.trainer.kto_trainer"}

# Methods of both trainers that ours override: the parameters after `self`, which must be exactly these, since TRL and
# transformers call the overrides
OVERRIDDEN = {
    "trl": {
        "_compute_loss": "model inputs return_outputs",
        "_precompute_ref_logps": "dataset name batch_size",
        "_prepare_dataset": "dataset processing_class args dataset_name",
        "_save_checkpoint": "model trial",
        "_send_telemetry": "",
        "_set_signature_columns_if_needed": "",
        "compute_loss": "model inputs return_outputs num_items_in_batch",
        "compute_ref_log_probs": "model inputs",
        "create_model_card": "model_name dataset_name tags",
        "evaluate": "eval_dataset ignore_keys metric_key_prefix",
        "log": "logs start_time",
        "training_step": "*args **kwargs",
    },
    "transformers": {
        "_clip_grad_norm": "model",
        "_finalize_training": "trial num_train_samples start_time",
        "_get_grad_norm": "model grad_norm",
        "_get_output_dir": "trial",
        "_load_best_model": "",
        "_load_from_checkpoint": "resume_from_checkpoint model",
        "_load_rng_state": "checkpoint",
        "_push_from_checkpoint": "checkpoint_folder",
        "_save": "output_dir state_dict",
        "evaluation_loop": "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "get_batch_samples": "epoch_iterator num_batches device",
        "prediction_step": "model inputs prediction_loss_only ignore_keys",
        "save_model": "output_dir _internal_call",
        "train": "resume_from_checkpoint trial ignore_keys_for_eval",
    },
}
# Attributes that both trainers have: on the class, or set by one of its methods
ATTRIBUTES = {
    "trl": "_metrics _name _tag_names _tokenizer _total_train_tokens _tp_size aux_loss_enabled beta "
    "precompute_ref_logps ref_model router_aux_loss_coef",
    "transformers": "_globalstep_last_logged _signature_columns _total_loss_scalar _tr_loss accelerator args "
    "callback_handler data_collator is_in_train loss_is_scaled_for_ga model processing_class state",
}
# What one trainer alone has
OWN_ATTRIBUTES = {
    "DPOTrainer": "create_model_from_path loss_types loss_weights",
    "KTOTrainer": "calculate_KL desirable_weight loss_type undesirable_weight",
}
_CONSTRUCTOR = (
    "model ref_model args data_collator train_dataset eval_dataset processing_class compute_metrics callbacks "
    "optimizers quantization_config peft_config"
)
# What we import, and the parameters that we pass: each must exist, and every other one must have a default. None for
# what is not called
IMPORTED = {
    "transformers.integrations:INTEGRATION_TO_CALLBACK": None,
    "transformers.masking_utils:eager_mask": None,
    "transformers.modeling_utils:PreTrainedModel._from_config": "config **kwargs",
    "transformers.trainer_utils:IntervalStrategy": None,
    "transformers.trainer_utils:SaveStrategy": None,
    "transformers.utils:ModelOutput": None,
    "transformers.utils:is_torch_bf16_gpu_available": "",
    "transformers.utils:is_torch_xla_available": "",
    "trl.data_utils:_tokenize": "processing_class input **apply_chat_template_kwargs",
    "trl.data_utils:common_prefix_length": "ids other_ids",
    "trl.data_utils:prepare_multimodal_messages": "messages",
    "trl.kernels.chunked_logprob:ChunkedLogProbFunction": None,
    "trl.models.utils:disable_gradient_checkpointing": "model gradient_checkpointing_kwargs",
    "trl.trainer.dpo_trainer:DPOTrainer.__init__": f"self {_CONSTRUCTOR}",
    "trl.trainer.dpo_trainer:DataCollatorForPreference": "pad_token_id max_length truncation_mode pad_to_multiple_of",
    "trl.trainer.dpo_trainer:create_model_from_path": "model_id **kwargs",
    "trl.trainer.kto_trainer:DataCollatorForUnpairedPreference": "pad_token_id max_length pad_to_multiple_of",
    "trl.trainer.kto_trainer:KTOTrainer.__init__": f"self {_CONSTRUCTOR}",
    "trl.trainer.utils:add_fused_lm_head": "model",
    "trl.trainer.utils:create_model_from_path": "model_id **kwargs",
    "trl.trainer.utils:get_comet_experiment_url": "",
    "trl.trainer.utils:get_config_model_id": "config",
    "trl.trainer.utils:get_trackio_space_url": "",
    "trl:DPOConfig": None,
    "trl:DatasetMixtureConfig": None,
    "trl:KTOConfig": None,
    "trl:ModelConfig": None,
    "trl:extract_prompt": "example",
    "trl:get_dataset": "mixture_config",
    "trl:get_peft_config": "model_args",
    "trl:get_quantization_config": "model_args",
}


class VersionError(ImportError):
    """The installed TRL or transformers does not fit; the text is one sentence that names versions that do."""


def remedy(library: str) -> str:
    """The pip command for the versions of a library that the tests ran with."""
    oldest, newest = TESTED[library]
    major, minor = Version(newest).release[:2]
    return f"pip install '{library}>={oldest},<{major}.{minor + 1}'"


def check_age(library: str) -> Version:
    """The installed version.

    Raises:
        VersionError: it is older than the oldest tested one.
    """
    installed, oldest = Version(version(library)), TESTED[library][0]
    if installed < Version(oldest):
        raise VersionError(
            f"trl_plus works with {library}>={oldest}, but {library} {installed} is installed: {remedy(library)}."
        )
    return installed


def check_tested() -> bool:
    """True if each installed library lies between the versions that the tests ran with.

    Raises:
        VersionError: one is too old.
    """
    return all(check_age(library).release[:2] <= Version(TESTED[library][1]).release[:2] for library in TESTED)


def check_seams() -> None:
    """Compare everything in this file with the installed libraries; log one warning if TRL is newer than tested.

    Raises:
        VersionError: a library is too old, or a place has moved.
    """
    installed = {library: check_age(library) for library in TESTED}
    import_peft()
    moved: dict[str, list[str]] = {}
    for library, sentence in differences():
        moved.setdefault(library, []).append(sentence)
    for library, sentences in moved.items():
        more = f" and {len(sentences) - 2} more" if len(sentences) > 2 else ""
        raise VersionError(
            f"{library} {installed[library]} does not fit this trl_plus ({'; '.join(sentences[:2])}{more}): "
            f"{remedy(library)}."
        )
    newest = TESTED["trl"][1]
    if installed["trl"].release[:2] > Version(newest).release[:2] and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "trl %s is newer than what trl_plus was tested with (up to %s). The parts of it that trl_plus depends on "
            "have their known signatures, so the run continues.",
            installed["trl"],
            newest,
        )


def explain(error: ImportError) -> str | None:
    """A sentence for an import that failed because TRL or transformers has moved something, or None for another."""
    library = (error.name or "").split(".")[0]
    if isinstance(error, VersionError) or library not in TESTED:
        return str(error) if isinstance(error, VersionError) else None
    return f"{library} {version(library)} does not fit this trl_plus ({error}): {remedy(library)}."


def differences() -> Iterator[tuple[str, str]]:
    """Each place that is not as listed: its library, and what is different."""
    for path, parameters in IMPORTED.items():
        name = path.replace(":", ".").replace(".__init__", "")
        try:
            found = _resolve(path)
        except AttributeError:
            yield path.split(":")[0].split(".")[0], f"`{name}` is missing"
            continue
        except ImportError:  # another library is missing: TRL 1.15 has kernels that need Triton
            continue
        if parameters is not None and (text := _uncallable(found, parameters.split())):
            yield path.split(":")[0].split(".")[0], f"`{name}` {text}"
    for name, module in TRAINERS.items():
        try:
            trainer = _resolve(f"{module}:{name}")
        except (AttributeError, ImportError):
            continue  # its constructor is in the list above
        yield from _trainer_differences(name, trainer)


def _trainer_differences(name: str, trainer: type) -> Iterator[tuple[str, str]]:
    mentioned = _mentioned(trainer)
    for library, methods in OVERRIDDEN.items():
        for method, parameters in methods.items():
            found = getattr(trainer, method, None)
            if found is None:
                yield library, f"`{name}.{method}` is missing"
            elif (now := _parameters(found)) not in (["self", *parameters.split()], _ANY, ["self", *_ANY]):
                owner = found.__module__.split(".")[0]  # the one that changed it
                shown = ", ".join(now[1:])
                expected = ", ".join(parameters.split())
                yield (
                    owner if owner in TESTED else library,
                    f"`{name}.{method}` takes ({shown}) instead of ({expected})",
                )
    for library, names in [*ATTRIBUTES.items(), ("trl", OWN_ATTRIBUTES[name])]:
        for attribute in names.split():
            if attribute not in mentioned and not hasattr(trainer, attribute):
                yield library, f"`{name}` no longer uses `{attribute}`"


_ANY = ["*args", "**kwargs"]  # a wrapper, which says nothing about what it wraps


def _parameters(function: Any) -> list[str]:
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [marks.get(p.kind, "") + p.name for p in inspect.signature(function).parameters.values()]


def _uncallable(function: Any, passed: list[str]) -> str | None:
    """Why a call with these parameters would fail, or None."""
    parameters = inspect.signature(function).parameters.values()
    now = _parameters(function)
    if now[-2:] == _ANY:
        return None
    if gone := [name for name in passed if name not in now]:
        return f"no longer takes `{gone[0].lstrip('*')}`"
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.kind not in free and parameter.name not in passed:
            return f"now requires `{parameter.name}`"
    return None


def _resolve(path: str) -> Any:
    """The object that `module:qualified.name` stands for.

    Raises:
        AttributeError: the module or the name does not exist. An import that fails for another reason is not caught.
    """
    module, _, name = path.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise AttributeError(str(error)) from None
        raise
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _mentioned(trainer: type) -> set[str]:
    """Every name that the code of a class and of its bases uses."""
    names: set[str] = set()
    for base in trainer.__mro__[:-1]:
        for function in vars(base).values():
            code = getattr(inspect.unwrap(getattr(function, "fget", None) or function), "__code__", None)
            names.update(code.co_names if code else ())
    return names
