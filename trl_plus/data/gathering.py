"""Rows that are made of several rows of a table: trees of messages, and one scored answer a row."""

from collections import Counter
from typing import Any

from trl_plus.data.converters import Shape, Unconvertible, WrongShape
from trl_plus.data.features import features_of
from trl_plus.data.left_out import LeftOut
from trl_plus.errors import DataError


def gathered(dataset: Any, shape: Shape, name: str, converter: str) -> tuple[Any, list[str]]:
    """The rows that a shape with `gather` makes of a table, each beside the other columns of the row it comes from;
    and how many rows are left out, by reason.

    Raises:
        DataError: the dataset is a stream, its values are of the wrong type, or no row can be made.
    """
    from datasets import Dataset, concatenate_datasets

    if not hasattr(dataset, "__len__") or shape.gather is None:
        raise DataError(f"{name}: `converter: {converter}` needs all rows at once: remove `dataset_streaming`.")
    columns = shape.columns(dataset.column_names) or {}
    try:
        found = list(shape.gather({field: dataset[column][:] for field, column in columns.items()}))
    except (WrongShape, Unconvertible) as error:
        raise DataError(f"{name}: `converter: {converter}`: {error}.") from error
    made = [(index, row) for index, row in found if isinstance(row, dict)]
    problems = dict(sorted((index, row) for index, row in found if isinstance(row, str)))
    if not made:
        raise DataError(
            f"{name}: `converter: {converter}` finds no prompt with two answers that differ in rank or score: choose "
            "the converter by the rows shown in docs/data.md."
        )
    used, rows = list(columns.values()), [row for _, row in made]
    new = Dataset.from_list(rows, features=features_of(dataset.features, rows[0], used))
    rest = [column for column in dataset.column_names if column not in (*used, *rows[0])]
    if rest:
        new = concatenate_datasets([dataset.select_columns(rest).select([index for index, _ in made]), new], axis=1)
    note = f"{name}: `converter: {converter}`: {len(made)} pairs made of {len(dataset)} rows, best against worst"
    if not problems:
        return new, [f"{note}."]
    reasons = "; ".join(f"{count}: {reason}" for reason, count in Counter(problems.values()).most_common())
    text = f"{note}; {len(problems)} answers are left out ({reasons})."
    return new, [LeftOut.of_rows(text, name, problems, len(dataset))]
