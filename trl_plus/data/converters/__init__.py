"""Converters: rows of a known foreign shape to pairs or labelled rows. Pure functions of one row, found by name."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from trl_plus.data.converters.dialogues import ALPACA, HH, OPENAI, PAIRS_TO_UNPAIRED, SHAREGPT
from trl_plus.data.converters.general import MESSAGES, PREFERENCE, TEXT
from trl_plus.data.converters.rows import COLUMNS, Row, Shape, Unconvertible, WrongShape, renamed
from trl_plus.data.converters.scored import ARGILLA, SCORES, ULTRAFEEDBACK
from trl_plus.data.converters.trees import GROUPS, TREES

# In the order in which a shape is recognised: the most particular columns first
CONVERTERS: dict[str, tuple[Shape, ...]] = {
    "openai": OPENAI,
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "ultrafeedback": ULTRAFEEDBACK,
    "argilla": ARGILLA,
    "scores": SCORES,
    "preference": PREFERENCE,
    "trees": TREES,
    "groups": GROUPS,
    "messages": MESSAGES,
    "hh": HH,
    "text": TEXT,
    "pairs_to_unpaired": PAIRS_TO_UNPAIRED,
}
_NEVER_SUGGESTED = "pairs_to_unpaired"  # fits every pair
_COMMON = {"prompt", "chosen", "rejected", "completion", "label"}  # columns that tell nothing of a row's shape

__all__ = ["CONVERTERS", "Row", "Shape", "Unconvertible", "WrongShape", "convert", "recognise", "shape_of"]


def shape_of(name: str, columns: list[str], row: Row | None = None) -> Shape | None:
    """The form of a converter's rows that has these columns, and of which this is a row."""
    for shape in CONVERTERS[name]:
        found = _columns(shape, tuple(columns))
        if found is not None and (
            row is None or shape.holds is None or _holds(row[found[shape.holds[0]]], shape.holds[1])
        ):
            return shape
    return None


def _holds(value: Any, kind: type) -> bool:
    return value is None or isinstance(value, kind)


@lru_cache(maxsize=1024)
def _columns(shape: Shape, available: tuple[str, ...]) -> Mapping[str, str] | None:
    return shape.columns(available)


def convert(shape: Shape, row: Row, paired_method: bool) -> list[Row]:
    """The rows that one row becomes, each with the columns that the shape does not use.

    Raises:
        Unconvertible: the row has no preference, no answer or no prompt.
        WrongShape: a value is of another type, or a column would be overwritten.
    """
    columns = _columns(shape, tuple(row)) or {}
    others = {name: value for name, value in row.items() if name not in columns.values()}
    fields = {field: row[column] for field, column in columns.items()}
    if shape.named:
        fields[COLUMNS] = columns
    try:
        rows = shape.convert(fields, paired_method)
    except (Unconvertible, WrongShape) as error:
        raise type(error)(renamed(str(error), columns)) from error
    clash = [name for name in rows[0] if name in others]
    if clash:
        raise WrongShape(f"`{clash[0]}` is a column that the converter would overwrite")
    return [{**others, **new} for new in rows]


def recognise(row: Row, paired_method: bool) -> str | None:
    """The converter whose shape a row has; None where there is none."""
    doubtful = None
    for name in CONVERTERS:
        shape = None if name == _NEVER_SUGGESTED else shape_of(name, list(row), row)
        if shape is None or (name == "argilla" and not any("rating" in column or "score" in column for column in row)):
            continue  # without ratings `text` reads these rows, and more of their columns
        columns = _columns(shape, tuple(row)) or {}
        if shape.in_form is not None and shape.in_form({field: row[column] for field, column in columns.items()}):
            continue
        try:
            convert(shape, row, paired_method)
        except Unconvertible:
            telling = set(columns.values()) - _COMMON
            doubtful = doubtful or (name if telling else None)
        except WrongShape:
            continue
        else:
            return name
    return doubtful
