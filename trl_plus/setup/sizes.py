"""The size of a run: rows, steps, and what its reader should know of them before it begins."""

import math

from trl_plus.data.loading import Data
from trl_plus.setup.objects import RunObjects


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
        notes.append(
            f"The effective batch of {batch} rows is larger than the data ({rows} rows), so an epoch is one step: "
            "lower `gradient_accumulation_steps` or `per_device_train_batch_size`."
        )
    if data.eval is None and objects.data.max_eval_rows != 0:
        cure = "`eval_dataset_name`" if rows is None else "`eval_fraction: 0.05` or `eval_dataset_name`"
        notes.append(
            "Nothing is held out, so no figure will tell whether the model got better, and `evaluate` and `compare` "
            f"will have no rows of this run: set {cure}."
        )
    return notes
