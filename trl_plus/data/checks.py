"""Checks of every row before anything is tokenized: no nulls, and valid weights, margins and labels."""

import math
from typing import Any

_BATCH = 10_000


def first_null(dataset: Any, columns: list[str]) -> tuple[str, int] | None:
    """Column and index of the first null among the columns of a map-style dataset, or None."""
    known = [name for name in columns if name in dataset.column_names]
    start = 0
    for batch in dataset.select_columns(known).with_format("arrow").iter(_BATCH):
        for name in known:
            if batch[name].null_count:
                return name, start + batch[name].is_null().to_pylist().index(True)
        start += len(batch)
    return None


def refuse_nulls(dataset: Any, columns: list[str], name: str) -> None:
    """Raises a ValueError that names the row if one of the columns holds a null. Streams are not looked through."""
    found = first_null(dataset, columns) if hasattr(dataset, "__len__") else None
    if found is not None:
        raise ValueError(f"`{found[0]}` of row {found[1]} of {name} is null: fill it in, or remove the row.")


def is_weight(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_SCORES = ("score_chosen", "score_rejected")


def with_margins(dataset: Any) -> Any:
    """The dataset with a `margin` column: its own, or the difference of `score_chosen` and `score_rejected`."""
    columns = set(getattr(dataset, "column_names", None) or next(iter(dataset)))
    return dataset if "margin" in columns or not columns.issuperset(_SCORES) else dataset.map(_difference)


def _difference(row: dict[str, Any]) -> dict[str, float | None]:
    scores = [row[name] for name in _SCORES]
    return {"margin": float(scores[0] - scores[1]) if all(map(is_number, scores)) else None}


def refuse_margins(dataset: Any, name: str) -> None:
    """Refuse a dataset without a `margin` column, or with one that is not a finite number in every row.

    Raises:
        ValueError: names the row. The rows of a stream are not read.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is not None and "margin" not in columns:
        raise ValueError(
            f"`margin_scale` reads a `margin` column, and {name} has none: add one (or `score_chosen` and "
            "`score_rejected`, as `converter: scores` does; `columns: {margin: NAME}` reads another column), or set "
            "`margin_scale: 0`."
        )
    if not hasattr(dataset, "__len__"):
        return
    bad = next(((i, v) for i, v in enumerate(dataset["margin"]) if not is_number(v)), None)
    if bad is not None:
        raise ValueError(f"`margin` of row {bad[0]} of {name} is {bad[1]!r}: it must be a finite number.")


def refuse_weights(dataset: Any, name: str) -> None:
    """Raises a ValueError unless every `weight` is a finite number of at least 0, and one is above 0."""
    if "weight" not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "__len__"):
        return
    values = dataset["weight"]
    bad = next((index for index, value in enumerate(values) if not is_weight(value)), None)
    if bad is not None:
        raise ValueError(
            f"`weight` of row {bad} of {name} is {values[bad]!r}: it must be a finite number of at least 0."
        )
    if len(dataset) and not any(values):
        raise ValueError(f"Every `weight` of {name} is 0, so nothing would be trained: set some above 0.")


def refuse_labels(dataset: Any, name: str) -> None:
    """Raises a ValueError unless every `label` is true or false (or 1 or 0)."""
    if "label" not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "__len__"):
        return
    bad = next(((i, v) for i, v in enumerate(dataset["label"]) if v not in (0, 1)), None)
    if bad is not None:
        raise ValueError(f"`label` of row {bad[0]} of {name} is {bad[1]!r}: it must be true or false.")
