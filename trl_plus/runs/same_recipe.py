"""Whether the recipe of a resumed run is the one it began with."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import PRESET, RESOLVED, Recipe, load_recipe

# Keys that change what is seen, kept or waited for, and no weight
_HARMLESS = {
    "output_dir", "run_name", "project", "trackio_space_id", "report_to", "disable_tqdm", "push_to_hub",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_dataset_name", "max_eval_rows",
    "report_generations", "per_device_eval_batch_size", "batch_eval_metrics", "prediction_loss_only",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataset_num_proc", "include_num_input_tokens_seen", "skip_memory_metrics", "ddp_timeout", "use_cpu",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "restore_callback_states_from_checkpoint",
    "max_nonfinite_skips",
}  # fmt: skip
_HARMLESS_PREFIXES = ("logging_", "log_", "early_stopping_", "save_", "eval_s", "eval_d", "eval_a", "eval_o", "hub_")
_CUT = ("per_device_train_batch_size", "gradient_accumulation_steps")
_LENGTH = ("num_train_epochs", "max_steps")
# With these a longer run begins with the very steps of a shorter one; any other rate depends on the number of steps
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")


def with_presets_of_run(recipe: Recipe, checkpoint: str) -> Recipe:
    """The recipe with the presets that the run began with, in place of today's; a note names each that differs.

    A value that the run's recipe or command line gave is none of them: leaving it out is a change.

    Args:
        checkpoint: the folder to resume from.
    """
    path = _recipe_beside(checkpoint)
    try:
        old, text = load_recipe(str(path)), path.read_text(encoding="utf-8")
    except (RecipeError, OSError, ValueError):
        return recipe  # `check_same_run` reports it
    if old.method.name != recipe.method.name:
        return recipe
    for name, today in recipe.method.preset.items():
        given = name in old.values and not re.search(rf"^{name}: .*  # {PRESET}$", text, re.MULTILINE)
        if recipe.origin(name) != PRESET or given or old[name] == today:
            continue
        whose = f"the preset of method {old.method.name}"
        note = f"{name} stays {old[name]}, as when the run began: {whose} is {today} today."
        kept = {key: value for key, value in recipe.values.items() if key != name or name in old.values}
        kept |= {name: old[name]} if name in old.values else {}
        origins = {key: origin for key, origin in recipe.origins.items() if key in kept}
        recipe = replace(recipe, values=kept, origins=origins, notes=(*recipe.notes, note))
    return recipe


def _recipe_beside(checkpoint: str) -> Path:
    return Path(checkpoint).parent / RESOLVED


def check_same_run(recipe: Recipe, checkpoint: str, force: bool, say: Callable[[Any], None]) -> None:
    """Compares a recipe with the `recipe.resolved.yaml` beside a checkpoint, and says what changed.

    Args:
        recipe: of this run, with what the machine decided.
        checkpoint: the folder to go on from.
        force: go on whatever changed.

    Raises:
        RecipeError: the result would be neither the old run nor one of the new recipe.
    """
    try:
        old = load_recipe(str(_recipe_beside(checkpoint)))
    except RecipeError as error:
        say(f"Nothing says with which recipe {checkpoint} was made: {error}")
        return
    changed, refused = changes(old, recipe, _processes(Path(checkpoint)), int(os.environ.get("WORLD_SIZE", "1")))
    if changed:
        say("Changed since the run began: " + "; ".join(changed) + ".")
    if refused and not force:
        raise RecipeError(
            f"--resume: {'; '.join(refused)}: the result would be neither the old run nor a run of this recipe. "
            "Set the old values, start without --resume, or add --force."
        )


def changes(old: Recipe, new: Recipe, old_ranks: int, new_ranks: int) -> tuple[list[str], list[str]]:
    """Each changed key as `key: old -> new`: all of them, and those that a run must not be resumed with."""
    names = ["method"] if old.method.name != new.method.name else []
    changed = [f"method: {old.method.name} -> {new.method.name}"] if names else []
    refused = list(changed)
    if names:
        return changed, refused
    same_batch = _rows(old, old_ranks) == _rows(new, new_ranks)
    for name in sorted({*old.values, *new.values}):
        if old[name] == new[name]:
            continue
        line = f"{name}: {old[name]} -> {new[name]}"
        changed.append(line)
        said_stop = name == "nonfinite" and old[name] == "stop"  # so no step was left out
        if not (
            _harmless(name) or said_stop or (name in _CUT and same_batch) or (name in _LENGTH and _any_length(old, new))
        ):
            refused.append(line)
    if old_ranks != new_ranks:
        line = f"processes: {old_ranks} -> {new_ranks}"
        changed.append(line + (" (the same rows in each step)" if same_batch else ""))
        refused += [] if same_batch else [line]
    return changed, refused


def _harmless(name: str) -> bool:
    return name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES)


def _any_length(old: Recipe, new: Recipe) -> bool:
    """Whether the learning rates of the steps made do not depend on how many follow."""
    # warmup_steps below 1 is a share of the run
    return all(
        recipe["lr_scheduler_type"] in _ENDLESS and not 0 < float(recipe["warmup_steps"] or 0) < 1
        for recipe in (old, new)
    )


def _rows(recipe: Recipe, ranks: int) -> int:
    return int(recipe[_CUT[0]]) * int(recipe[_CUT[1]]) * ranks


def _processes(checkpoint: Path) -> int:
    """The number of processes that saved a checkpoint: each one saves its random state."""
    return max(1, len(list(checkpoint.glob("rng_state*.pth"))))
