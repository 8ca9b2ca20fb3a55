"""Columns that say where a row comes from."""

from collections.abc import Iterable
from typing import Any

from trl_plus.data.files import DataError

# Columns that pandas, this package and its commands add
_INTERNAL = ("__index_level_", "_row", "_row_source", "_source_group")


def user_columns(columns: Iterable[str]) -> list[str]:
    """The columns that messages name: those that somebody wrote."""
    return [name for name in columns if name not in _INTERNAL and not name.startswith(_INTERNAL[0])]


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


# Rows that were one row of the source: holding out must not part them
_GROUP = "_source_group"


def mark_groups(dataset: Any, offset: int = 0) -> Any:
    """A map-style dataset whose rows carry, until `split_groups` or `without_groups`, which of them belong together.

    Args:
        offset: number of groups that other datasets of a mixture have before this one.
    """
    import numpy as np

    return dataset.add_column(_GROUP, np.arange(offset, offset + len(dataset)))


def without_groups(dataset: Any) -> Any:
    """The dataset without the column of `mark_groups`; unchanged where it has none."""
    return dataset.remove_columns(_GROUP) if _GROUP in (dataset.column_names or ()) else dataset


def split_groups(dataset: Any, test_size: float, seed: int | None) -> tuple[Any, Any]:
    """Training rows and held-out rows: rows that were one row of the source stay together.

    Args:
        test_size: share of the groups; of the rows, where nothing is grouped.
        seed: None draws from NumPy's global state.
    """
    import numpy as np
    from datasets import Dataset

    if _GROUP not in dataset.column_names:
        parts = dataset.train_test_split(test_size=test_size, seed=seed)
        return parts["train"], parts["test"]
    groups = np.asarray(dataset[_GROUP][:])
    parts = Dataset.from_dict({_GROUP: np.unique(groups)}).train_test_split(test_size=test_size, seed=seed)
    held_out = np.isin(groups, parts["test"][_GROUP][:])
    dataset = without_groups(dataset)
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


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
