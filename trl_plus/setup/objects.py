"""From a validated recipe to the objects a trainer takes. Importing the configurations imports torch and TRL."""

import re
from dataclasses import dataclass
from typing import Any

from trl_plus.data.loading import DataRequest
from trl_plus.errors import RecipeError
from trl_plus.recipes.options import RunOptions
from trl_plus.recipes.recipe import Recipe
from trl_plus.recipes.unknown_keys import meant


@dataclass(frozen=True)
class RunObjects:
    """The objects that a run is made from.

    Attributes:
        recipe: the recipe, with what this machine decided added.
        args: the method's training configuration.
        model: TRL's ModelConfig.
    """

    recipe: Recipe
    args: Any
    model: Any
    data: DataRequest
    options: RunOptions


_ENGINE_KEYS = ("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config")


def build(recipe: Recipe, engine: bool = False) -> RunObjects:
    """Instantiate the configurations of a recipe, with their own validation.

    Args:
        engine: with the recipe's DeepSpeed or FSDP keys, for a process that a launcher started to train. All other
            commands compute in one process, where DeepSpeed would look for the others.

    Raises:
        RecipeError: a configuration refuses a value, or the installed TRL or transformers lacks a key or a name.
    """
    import trl_plus

    check_names(recipe)
    options = _instance(RunOptions, recipe.group("RunOptions"), recipe)
    recipe = _with_precision(recipe)
    from trl import ModelConfig

    model = _instance(ModelConfig, recipe.group("ModelConfig"), recipe)
    if isinstance(model.lora_target_modules, str) and re.fullmatch(r"[\w.]+", model.lora_target_modules):
        model.lora_target_modules = [model.lora_target_modules]  # TRL makes a pattern, for the whole path, of one name
    args = _instance(getattr(trl_plus, recipe.method.config), _training_values(recipe, model, engine), recipe)
    return RunObjects(recipe, args, model, data_request(recipe), options)


def data_request(recipe: Recipe) -> DataRequest:
    """The data keys of a recipe."""
    script, mixture = recipe.group("ScriptArguments"), recipe.group("DatasetMixtureConfig")
    options = recipe.group("RunOptions")
    return DataRequest(
        paired_method=recipe.method.paired,
        name=script.get("dataset_name"),
        config=script.get("dataset_config"),
        columns=options.get("columns"),
        converter=options.get("converter"),
        train_split=recipe["dataset_train_split"],
        test_split=recipe["dataset_test_split"],
        test_split_required="dataset_test_split" in script,
        streaming=recipe["dataset_streaming"],
        mixture=mixture.get("datasets", []),
        mixture_streaming=recipe["streaming"],
        mixture_test_size=recipe["test_split_size"],
        eval_name=options.get("eval_dataset_name"),
        eval_fraction=recipe["eval_fraction"],
        max_eval_rows=recipe["max_eval_rows"],
        seed=recipe["seed"] if recipe["split_seed"] is None else recipe["split_seed"],
        balance=bool(options.get("balance")),
    )


def _training_values(recipe: Recipe, model: Any, engine: bool) -> dict[str, Any]:
    """The values of the training configuration, with the model's loading arguments put where TRL reads them."""
    values = recipe.group("training")
    if not engine:
        values = {name: value for name, value in values.items() if name not in _ENGINE_KEYS}
    given = values.get("model_init_kwargs") or {}
    if not isinstance(given, dict):
        raise RecipeError("`model_init_kwargs` must be a mapping such as {use_kernels: true}.")
    values["model_init_kwargs"] = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **given,
    }
    return values


def _with_precision(recipe: Recipe) -> Recipe:
    """TRL turns bfloat16 on by default. On hardware without it, turn it off with a note."""
    if recipe["bf16"] is not None or recipe["fp16"]:
        return recipe
    from transformers.utils import is_torch_bf16_gpu_available

    if is_torch_bf16_gpu_available() and not recipe["use_cpu"]:
        return recipe
    note = "No GPU with bfloat16 is used: bf16 is off. `bf16: true` with `use_cpu: true` turns it on."
    return recipe.with_machine("bf16", False, note)


def _instance(cls: type, values: dict[str, Any], recipe: Recipe) -> Any:
    try:
        return cls(**values)
    except TypeError as error:
        raise RecipeError(
            f"{recipe.place_of(str(error))}the installed versions of TRL and transformers refuse it: {error}."
        ) from error
    except (ValueError, ImportError) as error:
        raise RecipeError(f"{recipe.place_of(str(error))}{error}") from error


# -- names that the installed transformers knows ------------------------------------------------------------------


def check_names(recipe: Recipe) -> None:
    """Trackers and attention implementations.

    Raises:
        RecipeError: transformers does not know one of them.
    """
    asked = recipe["report_to"] or []
    named = {asked} if isinstance(asked, str) else {*asked}
    if named - {"all", "none"}:
        from transformers.integrations import INTEGRATION_TO_CALLBACK

        for name in sorted(named):
            _check(recipe, "report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
    attention = recipe["attn_implementation"]
    if attention is not None and "/" not in attention:  # org/name is a kernel of the hub
        from transformers import AttentionInterface

        _check(recipe, "attn_implementation", attention, ["eager", *AttentionInterface().valid_keys()])


def _check(recipe: Recipe, key: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    guess = meant(name, known)
    names = ", ".join(known)
    text = (
        f"`{key}` is {name!r}: {guess}It must be one of {names}."
        if guess
        else f"`{key}` must be one of {names}, got {name!r}."
    )
    raise RecipeError(f"{recipe.place_of(f'`{key}`')}{text}")
