"""What a run would do, as far as it can be known without the hub and without model weights."""

import os
from dataclasses import dataclass

from trl_plus.data.loading import Data, load
from trl_plus.errors import RecipeError
from trl_plus.launch.decision import launched, read_launch, this_machine
from trl_plus.launch.engines import config_file, read_config
from trl_plus.recipes.recipe import Recipe
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.sizes import planned_steps, size_notes
from trl_plus.setup.trainer import check_held_out, refuse_settings

_PLACEHOLDER = 8  # GPUs, where a configuration means all of them and this machine has none: TRL's files say 8


@dataclass(frozen=True)
class Plan:
    """The outcome of a dry run.

    Attributes:
        processes: how many processes the run has, one per device.
        engine: "ddp", "fsdp" or "deepspeed"; None where nothing would be launched.
        effective_batch: rows per optimizer step over all processes.
        data: the loaded data; None where it is on the hub.
        size_notes: what its reader should know of the size of the run.
        steps: optimizer steps; None where the number of rows is not known.
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
        unchecked.append(f"what the rows hold: `trl-plus preflight {recipe.argument}` does")
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
