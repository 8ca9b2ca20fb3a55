"""The source of a preflight: the rows, method and tokenizer of a recipe, or of a dataset alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from trl_plus.data.formats import detect, utf8
from trl_plus.data.loading import RawData, hold_out, load_raw
from trl_plus.data.mixture import DataRequest
from trl_plus.data.token_ids import vocabulary_named
from trl_plus.errors import DataError
from trl_plus.methods import METHODS
from trl_plus.preflight.examine import Batch
from trl_plus.preflight.rows import IMAGES, ROW, SOURCE, SOURCE_ROW, Kind, kind_of
from trl_plus.preflight.target import Target, stop_ids
from trl_plus.setup.objects import RunObjects

BATCH = 5000  # rows
_LOOK = 100  # rows from which the kind of the data is told
_DRAW = 0  # seed of the rows that are looked at; the run's own random numbers stay untouched


@dataclass(frozen=True)
class Source:
    """Loaded rows and what they are for.

    Attributes:
        problem: why no row can be looked at; empty where they can.
        images: rows have images, so that only their texts are looked at.
    """

    raw: RawData
    target: Target
    model: str | None
    format: str
    problem: str = ""
    images: bool = False

    @property
    def label(self) -> str:
        return self.raw.request.label

    def splits(self) -> Iterator[tuple[str, Any]]:
        yield "train", self.raw.train
        if self.raw.eval is not None:
            yield "eval", self.raw.eval


def open_run(objects: RunObjects, processor: Any | None) -> Source:
    """The rows of a recipe, with everything the trainer will be given."""
    model = objects.model.model_name_or_path
    target = Target(
        kind=Kind((), False, False),
        method=objects.recipe.method.name,
        paired_method=objects.recipe.method.paired,
        args=objects.args,
        processor=processor,
        trainer=objects.recipe.method.trainer,
        plain_text=objects.options.plain_text,
        balance=objects.options.balance,
    )
    if processor is not None:
        revision = objects.model.model_revision
        known = vocabulary_named(model, revision, objects.args.trust_remote_code)
        target = replace(target, stop_ids=stop_ids(target.tokenizer, model, revision), vocabulary=known)
    return _opened(objects.data, target, model)


def open_dataset(request: DataRequest, method: str | None) -> Source:
    """The rows of a dataset without a model: they are looked at as text."""
    name = method or "dpo"
    target = Target(Kind((), False, False), name, METHODS[name].paired)
    return _opened(request, target, None, any_method=method is None)


def _opened(request: DataRequest, target: Target, model: str | None, any_method: bool = False) -> Source:
    raw = hold_out(load_raw(replace(request, row_column=SOURCE_ROW)))
    raw, images = _without_images(raw)
    if images:  # their tokens depend on the images: the collator makes them
        target = replace(target, processor=None)
    with utf8(raw.name):
        first = list(islice(iter(raw.train), _LOOK))
    if not first:
        raise DataError(f"{raw.name} has no rows: check the file and the split.")
    kinds = Counter(kind for kind in map(kind_of, first) if kind is not None)
    if not kinds:
        return Source(raw, target, model, "unknown", problem=_why(first[0], raw.name, target.paired_method))
    kind = replace(kinds.most_common(1)[0][0], images=images)
    if any_method and not kind.paired:
        target = replace(target, method="kto", paired_method=False)
    sources = tuple(str(entry["path"]) for entry in request.mixture)
    target = replace(target, kind=kind, sources=sources)
    example = next(row for row in first if kind_of(row) == replace(kind, images=False))
    try:
        form = str(detect(_own_columns(example), raw.name, target.paired_method))
    except DataError as error:
        return Source(raw, target, model, "unknown", problem=str(error))
    return Source(raw, target, model, form, images=images)


def _without_images(raw: RawData) -> tuple[RawData, bool]:
    """The rows without their images, which nothing here reads, and whether there are any."""
    found = [name for name in IMAGES if name in (raw.train.column_names or ())]
    if not found:
        return raw, False
    held_out = raw.eval
    if held_out is not None:
        held_out = held_out.remove_columns([name for name in found if name in held_out.column_names])
    return replace(raw, train=raw.train.remove_columns(found), eval=held_out), True


def _own_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The row without what preflight and the readers put beside it."""
    return {name: value for name, value in row.items() if name not in (SOURCE_ROW, SOURCE, "__index_level_0__")}


def _why(row: dict[str, Any], name: str, paired_method: bool) -> str:
    try:
        detect(_own_columns(row), name, paired_method)
    except DataError as error:
        return str(error)
    return f"{name}: no row has a readable form."


def batches(dataset: Any, split: str, rows: int | None, previews: int) -> tuple[Iterator[Batch], int | None, bool]:
    """The rows to look at in batches, how many there are in all (None for a stream), and whether only some are taken.

    Args:
        rows: at most so many, drawn evenly; of a stream the first ones. None for all.
        previews: rows of the first batch to keep whole.
    """
    total = len(dataset) if hasattr(dataset, "__len__") else None
    some = rows is not None and total is not None and rows < total
    if some:
        chosen = np.random.default_rng(_DRAW).choice(total, rows, replace=False)
        dataset = dataset.select(np.sort(chosen))
    columns = dataset.iter(BATCH) if total is None or rows is None or rows else ()
    return _numbered(columns, dataset.features, split, rows if total is None else None, previews), total, some


def _numbered(columns: Any, features: Any, split: str, limit: int | None, previews: int) -> Iterator[Batch]:
    from datasets import Features, Value

    known = None if features is None else Features({**features, ROW: Value("int64")})
    done = 0
    for batch in columns:
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        if limit is not None:
            rows = rows[: limit - done]
        if not rows:
            return
        for position, row in enumerate(rows, start=done):
            row[ROW] = position
        yield Batch(split, rows, known, previews if done == 0 else 0)
        done += len(rows)
