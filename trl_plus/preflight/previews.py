"""Some rows of a source as token sequences, for `trl-plus preview`."""

from itertools import islice
from typing import Any

import numpy as np

from trl_plus.data.refusals import row_fault
from trl_plus.errors import DataError
from trl_plus.preflight.examine import Batch, examine
from trl_plus.preflight.findings import Preview
from trl_plus.preflight.rows import ROW, SOURCE_ROW
from trl_plus.preflight.source import Source
from trl_plus.ui.console import quiet_maps


def preview_source(source: Source, split: str, count: int, row: int | None) -> list[Preview]:
    """Rows spread evenly over a split (of a stream its first ones), or the one with a number.

    Raises:
        DataError: there are no such rows, they cannot be tokenized, or every trainer refuses them.
    """
    if source.problem:
        raise DataError(source.problem)
    if source.images:
        raise DataError(f"{source.label} has images: its tokens depend on them, and cannot be shown without the model.")
    if source.target.processor is None:
        raise DataError(f"{source.label} names no model, and tokens depend on one: add --model, or name a recipe.")
    splits = dict(source.splits())
    if split not in splits:
        raise DataError(f"{source.label} has no {split} rows: --split can be {' or '.join(splits)}.")
    rows = _numbered(splits[split], row) if row is not None else _spread(splits[split], count)
    if not rows:
        last = f"the last is {len(splits[split]) - 1}" if hasattr(splits[split], "__len__") else "it is a stream"
        raise DataError(f"The {split} rows of {source.label} have no row {row}: they are counted from 0, {last}.")
    for position, raw in enumerate(rows):
        fault = row_fault(raw)
        if fault is not None:
            raise DataError(f"Row {raw[SOURCE_ROW]} of the {split} rows: {fault}")
        raw[ROW] = position
    with quiet_maps():
        tally = examine(Batch(split, rows, previews=2 * len(rows)), source.target, near=False)
    if not tally.previews:
        found = [f"{code} row {item.examples[0].row}: {item.examples[0].detail}" for code, item in tally.found.items()
                 if item.count]  # fmt: skip
        raise DataError(f"These rows cannot be tokenized: {tally.refused or '; '.join(found)}.")
    return tally.previews


def _spread(dataset: Any, count: int) -> list[dict[str, Any]]:
    if not hasattr(dataset, "__len__"):
        return [dict(raw) for raw in islice(iter(dataset), count)]
    places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    return [dict(dataset[int(place)]) for place in places]


def _numbered(dataset: Any, number: int) -> list[dict[str, Any]]:
    """The rows made from row `number` of the source: a converter may make several of one, eval_fraction takes some."""
    if not hasattr(dataset, "__len__"):
        return [dict(raw) for raw in islice((raw for raw in dataset if raw[SOURCE_ROW] == number), 1)]
    return [dict(dataset[int(place)]) for place in np.flatnonzero(np.asarray(dataset[SOURCE_ROW]) == number)]
