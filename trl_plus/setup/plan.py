"""The plan of a run: its size and its launch, as far as the hub and the weights are not needed to know them."""

import math
import os
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from trl_plus.data.loading import Data, load
from trl_plus.errors import RecipeError
from trl_plus.launch.engines import config_file, read_config
from trl_plus.launch.request import launched, read_launch, this_machine
from trl_plus.recipes.recipe import Recipe
from trl_plus.recipes.yaml_text import inline
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.trainer import check_held_out, refuse_settings
from trl_plus.ui.console import say

_PLACEHOLDER = 8  # GPUs, where a configuration means all of them and this machine has none: TRL's files have 8


@dataclass(frozen=True)
class Plan:
    """The outcome of a dry run.

    Attributes:
        processes: how many processes the run has, one per device.
        engine: "ddp", "fsdp" or "deepspeed"; None if nothing would be launched.
        effective_batch: rows per optimizer step over all processes.
        data: the loaded data; None if it is on the hub.
        size_notes: what its reader should know of the size of the run.
        steps: optimizer steps; None if the number of rows is not known.
        unchecked: what only the run itself will show.
        notes_shown: how many of the recipe's notes were there before the objects were built.
    """

    objects: RunObjects
    processes: int
    engine: str | None
    effective_batch: int
    data: Data | None
    size_notes: list[str]
    steps: int | None
    unchecked: list[str]
    notes_shown: int


def plan(
    recipe: Recipe, accelerate_config: str | None = None, num_processes: int | None = None, elsewhere: bool = False
) -> Plan:
    """Validate everything that needs neither the hub nor model weights.

    Args:
        accelerate_config, num_processes: what the run would be launched with.
        elsewhere: True for a run on another machine. Packages that are missing here do not matter.

    Raises:
        RecipeError, DataError: the run would be refused.
    """
    processes, engine, refused = _launch(recipe, accelerate_config, num_processes)
    objects = build(recipe)
    if not elsewhere:
        refuse_settings(objects)
    data = load(objects.data) if objects.data.local else None
    if data is not None:
        check_held_out(objects, data)
    batch = objects.args.per_device_train_batch_size * objects.args.gradient_accumulation_steps * processes
    unchecked = [f"the model {recipe['model_name_or_path']}: its weights and tokenizer were not loaded"]
    if refused is not None:
        unchecked.append(f"the launch, since this machine would refuse it: {refused.rstrip('.')}")
    if data is not None:
        unchecked.append(f"what the rows hold: `{recipe.command('preflight')}` does")
    else:
        unchecked.append(f"the dataset {objects.data.label}: it is on the hub and was not downloaded")
    notes = [] if data is None else size_notes(objects, data, batch)
    steps = planned_steps(objects, data, batch)
    return Plan(objects, processes, engine, batch, data, notes, steps, unchecked, len(recipe.notes))


def _launch(recipe: Recipe, config: str | None, number: int | None) -> tuple[int, str | None, str | None]:
    """Processes, engine, and why this machine would refuse to start them. The run may be meant for another machine."""
    if (config is None and number is None) or launched():
        return int(os.environ.get("WORLD_SIZE", "1")), None, None
    written = {} if config is None else read_config(config_file(config), config)  # a bad file is refused anywhere
    try:
        launch = read_launch(recipe, config, number, this_machine())
        return launch.processes, launch.engine, None
    except RecipeError as error:
        return number or written.get("num_processes") or _PLACEHOLDER, None, str(error)


# -- the size of a run --------------------------------------------------------------------------------------------


def training_rows(objects: RunObjects, data: Data) -> int | None:
    """Rows that an epoch trains on; None for a stream."""
    if not hasattr(data.train, "__len__"):
        return None
    rows = len(data.train)
    doubled = data.format.paired and not objects.recipe.method.paired  # each pair becomes two labelled rows
    return 2 * rows if doubled else rows


def planned_steps(objects: RunObjects, data: Data | None, batch: int) -> int | None:
    """Optimizer steps of the run, counted as transformers does: a last short batch is a step."""
    if objects.args.max_steps > 0:
        return int(objects.args.max_steps)
    rows = None if data is None else training_rows(objects, data)
    return None if rows is None else math.ceil(objects.args.num_train_epochs * math.ceil(rows / batch))


def size_notes(objects: RunObjects, data: Data, batch: int) -> list[str]:
    """Sentences on an effective batch of `batch` rows that no epoch fills, and on a run that nothing will judge."""
    notes = []
    rows = training_rows(objects, data)
    if rows is not None and rows < batch:
        keys = ("gradient_accumulation_steps", "per_device_train_batch_size")
        lower = [f"lower `{key}`" for key in keys if getattr(objects.args, key) > 1] or ["start fewer processes"]
        notes.append(
            f"The effective batch of {batch} rows is larger than the data ({rows} rows), so an epoch is one step: "
            f"{' or '.join(lower)}."
        )
    if data.eval is None and objects.data.max_eval_rows != 0:
        cure = "`eval_dataset_name`" if rows is None else "`eval_fraction: 0.05` or `eval_dataset_name`"
        notes.append(
            "Nothing is held out, so no figure will tell whether the model got better, and `evaluate` and `compare` "
            f"will have no rows of this run: set {cure}."
        )
    return notes


def effective_batch(args: Any, processes: int) -> str:
    """A sentence on the rows of an optimizer step."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    return (
        f"Effective batch size: {rows} = {args.per_device_train_batch_size} per device * "
        f"{args.gradient_accumulation_steps} accumulation steps * {processes} processes."
    )


# -- how a plan is printed ----------------------------------------------------------------------------------------


def show_plan(plan: Plan) -> None:
    """Print the values with their origins, the size of the run, and what was not checked."""
    recipe, args = plan.objects.recipe, plan.objects.args
    table = Table("key", "value", "origin", title=f"method: {recipe.method.name} ({recipe.method.summary})")
    table.title_justify = "left"
    for name, value in recipe.values.items():
        table.add_row(name, Text(inline(value)), recipe.origin(name))
    say(table)
    say(effective_batch(args, plan.processes))
    if plan.engine is not None:
        say(f"Processes: {plan.processes}, engine: {plan.engine}.")
    if plan.data is not None:
        held_out = "none" if plan.data.eval is None else f"{len(plan.data.eval)} rows"
        say(f"Data: {plan.data.format}; {len(plan.data.train)} rows to train on, held out: {held_out}.")
        for note in (*plan.data.notes, *plan.size_notes):
            say(note)
    if plan.steps is not None:
        say(f"Optimizer steps: {plan.steps}.")
    for note in recipe.notes[plan.notes_shown :]:
        say(note)
    for sentence in plan.unchecked:
        say(f"Not checked: {sentence}.")
    say("The recipe is valid.")
