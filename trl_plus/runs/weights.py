"""The trained weights of a run: find them, open them with their recipe, and tell them from others."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from trl_plus.data.files import as_path
from trl_plus.errors import RecipeError
from trl_plus.recipes.package_data import find_recipe
from trl_plus.recipes.recipe import RESOLVED, Recipe, load_recipe
from trl_plus.runs.checkpoint_files import checkpoints, step_of
from trl_plus.runs.journal import measured

_ADAPTER, _MODEL = "adapter_config.json", "config.json"
# What holds weights; `training_args.bin` lies beside them and holds none
_ADAPTER_WEIGHTS = ("adapter_model*.safetensors", "adapter_model*.bin")
_FSDP_SHARDS = "pytorch_model_fsdp_0"  # of accelerate, with `fsdp_state_dict_type: SHARDED_STATE_DICT`
_MODEL_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Weights:
    """Trained weights: a folder or a hub id. `adapter` is None if only the hub knows."""

    path: str
    adapter: bool | None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the adapter or the model of a folder, in the order of their names."""
    found = weights_in(folder)
    if found is None:
        return []
    patterns = _ADAPTER_WEIGHTS if found.adapter else _MODEL_WEIGHTS
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def weights_in(folder: Path) -> Weights | None:
    """The adapter or the model in a folder; None if there is neither."""
    for config, patterns in ((_ADAPTER, _ADAPTER_WEIGHTS), (_MODEL, _MODEL_WEIGHTS)):
        if (folder / config).is_file() and any(next(folder.glob(pattern), None) for pattern in patterns):
            return Weights(str(folder), adapter=config == _ADAPTER)
    return None


def refuse_shards(folder: Path) -> None:
    """Raise a RecipeError if the weights of a folder are there, but in the shards of DeepSpeed or FSDP."""
    if (folder / "zero_to_fp32.py").is_file():
        raise RecipeError(
            f"{folder} holds its weights in shards of DeepSpeed. Fix: `cd {folder} && python zero_to_fp32.py . . "
            "--safe_serialization` makes them whole; `zero3_save_16bit_model: true` saves them whole."
        )
    if (folder / _FSDP_SHARDS).is_dir():
        raise RecipeError(
            f"{folder} holds its weights in shards of FSDP. Fix: use the folder of the finished run, whose model is "
            "whole; `fsdp_state_dict_type: FULL_STATE_DICT` saves whole checkpoints."
        )


def named_weights(name: str) -> Weights:
    """The weights that `--model` names.

    Raises:
        RecipeError: it is a folder without weights.
    """
    folder = as_path(name)
    if not folder.is_dir():
        return Weights(name, adapter=None)
    found = weights_in(folder)
    if found is None:
        refuse_shards(folder)
        raise RecipeError(f"{name} holds neither an adapter nor a model: name a folder with {_ADAPTER} or {_MODEL}.")
    return found


def open_run(argument: str, overrides: Sequence[str] = (), needs_data: bool = True) -> tuple[Recipe, Weights]:
    """The recipe and the weights of a run: an output folder of `train`, or `checkpoint-N` inside one.

    Args:
        needs_data: as for `load_recipe`.

    Raises:
        RecipeError: the folder holds no recipe or no weights.
    """
    folder = as_path(argument)
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {argument}: name the `output_dir` of a run, or a checkpoint in it.")
    places = [folder, folder.absolute().parent] if step_of(folder.absolute()) >= 0 else [folder]
    recipe = next((place / RESOLVED for place in places if (place / RESOLVED).is_file()), None)
    if recipe is None:
        raise RecipeError(
            f"{argument} holds no {RESOLVED}: name the `output_dir` of a run, or put the run's recipe there under that "
            "name."
        )
    weights = weights_in(folder)
    if weights is None:
        refuse_shards(folder)
        saved = checkpoints(folder)
        cure = f"name a checkpoint, {saved[0]} for example" if saved else "train it first"
        raise RecipeError(f"{argument} holds no trained weights: {cure}.")
    return load_recipe(str(recipe), overrides, needs_data), weights


def held_out_digest_of(recipe: Recipe) -> str | None:
    """The digest of the rows that a run held out; None if the recipe is not a run's, or its metrics have none."""
    path = Path(recipe.label)
    return (measured(path.parent) or {}).get("held_out_digest") if path.name == RESOLVED else None


def open_tuned(argument: str, model: str | None, overrides: Sequence[str]) -> tuple[Recipe, Weights | None]:
    """A recipe and the weights that were trained with it; None if there are none yet.

    Args:
        argument: a recipe, an output folder of `train`, or a checkpoint in one.
        model: other weights, a folder or a hub id.

    Raises:
        RecipeError: one of them cannot be read.
    """
    if as_path(argument).is_dir():
        recipe, own = open_run(argument, overrides)
        return recipe, own if model is None else named_weights(model)
    find_recipe(argument, runs=True)
    recipe = load_recipe(argument, overrides)
    trained = weights_in(Path(recipe["output_dir"]).expanduser())
    return recipe, trained if model is None else named_weights(model)


# -- their identity -----------------------------------------------------------------------------------------------

_BLOCK, _BLOCKS = 1 << 16, 64  # bytes, and how many of each file are read: 4 MiB, whatever the model


@dataclass(frozen=True)
class EvaluatedWeights:
    """Identity of the weights that an evaluation scored, which tells them from weights that were trained further."""

    step: Annotated[int | None, Field(description="Their optimizer step; null if it is not known.")]
    fingerprint: Annotated[
        str | None,
        Field(
            description="Hash of blocks of the weight files; null for weights on the hub. Other weights have another "
            "one."
        ),
    ]


def identify(weights: Weights) -> EvaluatedWeights:
    """Step and fingerprint of weights, which tell them from others."""
    folder = Path(weights.path)
    if weights.adapter is None or not folder.is_dir():
        return EvaluatedWeights(None, None)
    return EvaluatedWeights(_step(folder), fingerprint(folder))


def fingerprint(folder: Path) -> str | None:
    """Return a hash of the sizes and of evenly spread blocks of a folder's weight files; None without any.

    A few steps of training change something in every block of trained weights, so blocks are enough, and as fast for
    any model.
    """
    files = weight_files(folder)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(0, (size - _BLOCK) * number // (_BLOCKS - 1)))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32] if files else None


def _step(folder: Path) -> int | None:
    inside = step_of(folder.absolute())
    if inside >= 0:
        return inside
    step = (measured(folder) or {}).get("step")
    return step if isinstance(step, int) else None


def changed_base(folder: Path, base: str) -> str | None:
    """A sentence if the base weights of a run are no longer those that it began with.

    Args:
        folder: of the run, or of a checkpoint in it.
        base: the model's folder. A model on the hub is not looked at.
    """
    run = folder.absolute().parent if step_of(folder.absolute()) >= 0 else folder
    kept = (measured(run) or {}).get("model_fingerprint")
    if kept is None or not Path(base).is_dir() or fingerprint(Path(base)) == kept:
        return None
    return (
        f"The weight files in {base} have changed since {run} was trained on them. Fix: put the earlier files back, "
        "or train again."
    )
