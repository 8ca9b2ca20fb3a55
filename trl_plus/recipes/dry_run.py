"""What a run would do, as far as it can be known without the hub and without model weights."""

import math
import os
from dataclasses import dataclass

from trl_plus.data.loading import Data, load
from trl_plus.recipes.launch import config_file, process_count
from trl_plus.recipes.objects import RunObjects, build
from trl_plus.recipes.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The outcome of a dry run.

    Attributes:
        processes: how many processes the run has, one per device.
        effective_batch: rows per optimizer step over all processes.
        data: the loaded data; None where it is on the hub.
        steps: optimizer steps; None where the number of rows is not known.
        unchecked: what only the run itself will show.
        notes_shown: how many of the recipe's notes were there before the objects were built.
    """

    objects: RunObjects
    processes: int
    effective_batch: int
    data: Data | None
    steps: int | None
    unchecked: list[str]
    notes_shown: int


def plan(recipe: Recipe, accelerate_config: str | None = None) -> Plan:
    """Validate everything that needs neither the hub nor model weights.

    Args:
        accelerate_config: the configuration the run would be launched with; it says how many processes there are.

    Raises:
        RecipeError, DataError: the run would be refused.
    """
    processes = _processes(accelerate_config)
    objects = build(recipe)
    data = load(objects.data) if objects.data.local else None
    batch = objects.args.per_device_train_batch_size * objects.args.gradient_accumulation_steps * processes
    unchecked = [f"the model {recipe['model_name_or_path']}: its weights and tokenizer were not loaded"]
    if data is None:
        unchecked.append(f"the dataset {objects.data.label}: it is on the hub and was not downloaded")
    return Plan(objects, processes, batch, data, _steps(objects, data, batch), unchecked, len(recipe.notes))


def _processes(accelerate_config: str | None) -> int:
    if accelerate_config is not None:
        return process_count(config_file(accelerate_config))
    return int(os.environ.get("WORLD_SIZE", "1"))


def _steps(objects: RunObjects, data: Data | None, batch: int) -> int | None:
    """Optimizer steps of the run, counted as transformers does: a last short batch is a step."""
    if objects.args.max_steps > 0:
        return int(objects.args.max_steps)
    if data is None or not hasattr(data.train, "__len__"):
        return None
    rows = len(data.train)
    if data.format.paired and not objects.recipe.method.paired:
        rows *= 2  # each pair becomes two labelled rows
    return math.ceil(objects.args.num_train_epochs * math.ceil(rows / batch))
