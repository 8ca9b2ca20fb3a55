"""Columns that say where a row comes from."""

import math
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
    """Training rows and held-out rows: rows of one prompt, or of one row of the source, stay together.

    A prompt that is trained on and held out would let held-out figures say what was memorised.

    Args:
        test_size: share of the groups; of the rows, where no two belong together.
        seed: None draws from NumPy's global state.

    Raises:
        DataError: too few groups for two parts.
    """
    import numpy as np
    from datasets import Dataset

    groups = _together(dataset)
    dataset = without_groups(dataset)
    count = len(np.unique(groups))
    if (math.ceil(test_size * count) if test_size < 1 else test_size) >= count:
        raise DataError(
            f"The {len(dataset)} rows have {count} different prompts or sources, which stay on one side: holding out "
            f"{test_size:g} leaves nothing to train on. Hold out less, or name held-out rows by `eval_dataset_name`."
        )
    if count == len(dataset):
        parts = dataset.train_test_split(test_size=test_size, seed=seed)
        return parts["train"], parts["test"]
    parts = Dataset.from_dict({_GROUP: np.unique(groups)}).train_test_split(test_size=test_size, seed=seed)
    held_out = np.isin(groups, parts["test"][_GROUP][:])
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def _together(dataset: Any) -> Any:
    """(rows,) int: equal for rows that `split_groups` must not part. A prompt inside `chosen` is not looked for."""
    import numpy as np

    keys = [name for name in (_GROUP, "prompt") if name in dataset.column_names]
    leader = list(range(len(dataset)))  # a forest: each row's way leads to the first row of its group

    def first_of(row: int) -> int:
        while leader[row] != row:
            leader[row] = row = leader[leader[row]]
        return row

    seen: dict[tuple[str, str], int] = {}
    for start, batch in enumerate(dataset.select_columns(keys).iter(1000)) if keys else ():
        for row in range(len(batch[keys[0]])):
            at = 1000 * start + row
            for name in keys:
                a, b = first_of(at), first_of(seen.setdefault((name, repr(batch[name][row])), at))
                leader[max(a, b)] = min(a, b)
    return np.array([first_of(row) for row in range(len(dataset))])


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
