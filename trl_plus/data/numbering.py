"""Columns that say where a row comes from."""

from typing import Any

from trl_plus.data.files import DataError


def number_rows(dataset: Any, column: str | None, name: str) -> Any:
    """The dataset with an int64 column that holds the 0-based index of each row; unchanged where `column` is None.

    Raises:
        DataError: the dataset has a column of that name.
    """
    return dataset if column is None else _with_column(dataset, column, None, name)


def mark_source(dataset: Any, column: str | None, source: int, name: str) -> Any:
    """The dataset with an int64 column that is `source` in each row; unchanged where `column` is None.

    Raises:
        DataError: the dataset has a column of that name.
    """
    return dataset if column is None else _with_column(dataset, column, source, name)


def _with_column(dataset: Any, column: str, constant: int | None, name: str) -> Any:
    import numpy as np
    from datasets import Features, Value

    if column in (dataset.column_names or ()):
        raise DataError(f"{name} has a column `{column}` of its own: rename one of them.")
    if hasattr(dataset, "__len__"):
        values = np.arange(len(dataset)) if constant is None else np.full(len(dataset), constant)
        return dataset.add_column(column, values)
    known = dataset.features
    return dataset.map(
        _fill,
        with_indices=True,
        fn_kwargs={"column": column, "constant": constant},
        features=None if known is None else Features({**known, column: Value("int64")}),
    )


def _fill(row: dict[str, Any], index: int, column: str, constant: int | None) -> dict[str, Any]:
    return {**row, column: index if constant is None else constant}
