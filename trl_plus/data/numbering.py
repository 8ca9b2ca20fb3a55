"""Columns that say where a row comes from."""

from collections.abc import Iterable
from typing import Any

from trl_plus.errors import DataError

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

    A prompt that is trained on and held out would let held-out figures say what was memorised. Rows (of the source) are
    drawn; what the draw parts is put together again, so that rows with a prompt of their own stay where they fell.

    Args:
        test_size: share of the rows; about that where rows share a prompt.
        seed: None draws from NumPy's global state.

    Raises:
        DataError: all rows have one prompt.
    """
    import numpy as np
    from datasets import Dataset

    groups = _together(dataset)
    grouped = _GROUP in dataset.column_names
    units, first = np.unique(dataset[_GROUP][:] if grouped else np.arange(len(dataset)), return_index=True)
    drawn = Dataset.from_dict({"first": first}).train_test_split(test_size=test_size, seed=seed)
    train, test = (np.asarray(drawn[name]["first"][:]) for name in ("train", "test"))
    held_out = np.isin(dataset[_GROUP][:], units[np.isin(first, test)]) if grouped else np.isin(first, test)
    held_out = np.isin(groups, _held_out(groups, held_out, np.concatenate([test, train])))
    if held_out.all():
        raise DataError(
            f"The {len(dataset)} rows have one prompt, so nothing would be left to train on: remove `eval_fraction`, "
            "or name held-out rows by `eval_dataset_name`."
        )
    order = np.arange(len(dataset)) if grouped else np.concatenate([train, test])
    held_out, dataset = held_out[order], without_groups(dataset)
    return dataset.select(order[~held_out]), dataset.select(order[held_out])


def _held_out(groups: Any, drawn: Any, order: Any) -> list[int]:
    """The groups that are held out: those that were drawn whole, and parted ones until as many rows are held out.

    Args:
        groups: (rows,) int, the group of each row.
        drawn: (rows,) bool, the rows that were drawn.
        order: rows in random order, in which parted groups are asked.
    """
    import numpy as np

    size, of_drawn = np.bincount(groups), np.bincount(groups, weights=drawn)
    chosen = [int(group) for group in np.flatnonzero((of_drawn == size) & (size > 0))]
    held, parted = int(size[chosen].sum()), (of_drawn > 0) & (of_drawn < size)
    wanted = int(drawn.sum())
    for group in groups[order]:
        if parted[group] and (not chosen or held + size[group] <= wanted):
            chosen.append(int(group))
            held += int(size[group])
        parted[group] = False
    return chosen


def _together(dataset: Any) -> Any:
    """(rows,) int: for each row the first of those that belong together. A prompt inside `chosen` is not looked for."""
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
