"""Resume a run: find the checkpoint that `--resume` names, and compare its recipe with the new one."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import PRESET, RESOLVED, Recipe, load_recipe
from trl_plus.runs import checkpoint_files as files

_NAMED = 5  # checkpoints that an error names
NEWEST = "newest"  # the value of `--resume` without a path


def find_checkpoint(
    resume: str, output_dir: str, max_steps: int = -1, say: Callable[[Any], None] = lambda text: None
) -> str:
    """The checkpoint folder to resume from: the newest complete one, or the one that is named.

    Args:
        resume: a checkpoint folder, an output folder, or NEWEST for `output_dir`.
        max_steps: of the recipe; -1 if epochs end the run.
        say: told why each newer checkpoint was passed over.

    Raises:
        RecipeError: there is no complete one, or it is beyond the run's last step.
    """
    folder = _complete(resume, output_dir, say)
    steps = json.loads((folder / files.STATE).read_text(encoding="utf-8"))["global_step"]
    if 0 < max_steps < steps:
        raise RecipeError(f"--resume: {folder} is at step {steps}, beyond max_steps {max_steps}: raise max_steps.")
    return str(folder)


def resumed_folder(resume: str, output_dir: str) -> Path:
    """The folder that `--resume` names.

    Raises:
        RecipeError: there is none.
    """
    if not resume.strip():
        raise RecipeError("--resume= names no folder: write --resume for the newest checkpoint, or --resume PATH.")
    folder = Path(output_dir if resume == NEWEST else resume).expanduser()
    if folder.is_file():
        raise RecipeError(f"--resume: {folder} is a file: name a checkpoint folder.")
    if not folder.is_dir():
        others = files.checkpoints(folder.parent) if files.step_of(folder) >= 0 else []
        cure = f"name one that {folder.parent} holds, {_named(others)}" if others else "start without --resume"
        raise RecipeError(f"--resume: the folder {folder} does not exist: {cure}.")
    return folder


def _named(folders: list[Path]) -> str:
    more = len(folders) - _NAMED
    return ", ".join(path.name for path in folders[:_NAMED]) + (f" or {more} more" if more > 0 else "")


def _complete(resume: str, output_dir: str, say: Callable[[Any], None]) -> Path:
    folder = resumed_folder(resume, output_dir)
    if resume != NEWEST and (files.step_of(folder) >= 0 or (folder / files.STATE).is_file()):
        problem = files.problem_of(folder)
        if problem is not None:
            raise RecipeError(f"--resume: {folder} is not complete: {problem}. Name another checkpoint.")
        return folder
    found = files.find(folder)
    if found.newest is None:
        why = f" ({'; '.join(found.passed_over)})" if found.passed_over else ""
        kind = "complete checkpoint" if found.passed_over else "checkpoint"
        raise RecipeError(f"--resume: {folder} holds no {kind}{why}: start without --resume, or name another folder.")
    for reason in found.passed_over:
        say(f"Passed over {reason}.")
    return found.newest


# -- the recipe of a resumed run ----------------------------------------------------------------------------------

# Keys that change what is shown, kept or waited for, but no weight
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
    """Compare a recipe with the `recipe.resolved.yaml` beside a checkpoint, and print the changes.

    Args:
        recipe: of this run, with what the machine decided.
        checkpoint: the folder to resume from.
        force: resume whatever changed.

    Raises:
        RecipeError: the result would be neither the old run nor one of the new recipe.
    """
    try:
        old = load_recipe(str(_recipe_beside(checkpoint)))
    except RecipeError as error:
        say(f"Nothing says with which recipe {checkpoint} was made: {error}")
        return
    saved_by = max(1, len(list(Path(checkpoint).glob("rng_state*.pth"))))  # each process saves its random state
    changed, refused = changes(old, recipe, saved_by, int(os.environ.get("WORLD_SIZE", "1")))
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
        harmless = name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES)
        no_step_left_out = name == "nonfinite" and old[name] == "stop"
        same_steps = (name in _CUT and same_batch) or (name in _LENGTH and _any_length(old, new))
        if not (harmless or no_step_left_out or same_steps):
            refused.append(line)
    if old_ranks != new_ranks:
        line = f"processes: {old_ranks} -> {new_ranks}"
        changed.append(line + (" (the same rows in each step)" if same_batch else ""))
        refused += [] if same_batch else [line]
    return changed, refused


def _any_length(old: Recipe, new: Recipe) -> bool:
    """True if the learning rates of the steps that were made do not depend on the number of steps that follow."""
    # warmup_steps below 1 is a share of the run
    return all(
        recipe["lr_scheduler_type"] in _ENDLESS and not 0 < float(recipe["warmup_steps"] or 0) < 1
        for recipe in (old, new)
    )


def _rows(recipe: Recipe, ranks: int) -> int:
    return int(recipe[_CUT[0]]) * int(recipe[_CUT[1]]) * ranks
