"""The mapping `columns` of a recipe: names of a dataset's columns to the names that are read here."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from trl_plus.data.numbering import user_columns
from trl_plus.errors import DataError

_MINUS = " - "


def mapped(dataset: Any, columns: Mapping[str, str | None] | None, name: str) -> Any:
    """The dataset with its columns under other names.

    Args:
        columns: new name -> column, a value inside one with dots between the keys, or the difference of two numbers,
            as "score_chosen - score_rejected"; None leaves a column out.
        name: the dataset, as messages name it.

    Raises:
        DataError: there is no such column or key, or a difference is of other values than numbers.
    """
    if not columns:
        return dataset
    first = next(iter(dataset), None)
    if first is None:
        return dataset
    for target, source in columns.items():
        for part in _parts(source if source is not None else target, first):
            _look_up(first, part, target, name)
    taken = {source for source in columns.values() if source is not None}
    gone = [column for column in first if (column in columns or column in taken) and columns.get(column) != column]
    types = _types(dataset.features, columns, gone)
    wanted = {target: source for target, source in columns.items() if source is not None and source != target}
    if not wanted:
        return dataset.remove_columns(gone)
    if hasattr(dataset, "__len__") and all(source in first for source in wanted.values()):
        return _renamed(dataset, wanted, gone)
    try:
        return dataset.map(_pick, fn_kwargs={"wanted": wanted}, remove_columns=gone, features=types)
    except TypeError as error:
        raise DataError(f"`columns` of {name}: {error}.") from error


def _renamed(dataset: Any, wanted: Mapping[str, str], gone: list[str]) -> Any:
    """Columns of a table under new names, none of which is read."""
    from datasets import concatenate_datasets

    kept = dataset.select_columns([column for column in dataset.column_names if column not in gone])
    parts = [dataset.select_columns([source]).rename_column(source, target) for target, source in wanted.items()]
    return concatenate_datasets([*([kept] if kept.column_names else []), *parts], axis=1)


def _pick(row: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    return {target: _wanted(row, source) for target, source in wanted.items()}


def _parts(source: str, row: Mapping[str, Any]) -> list[str]:
    """The two sides of a difference, or the source alone."""
    return [source] if source in row else source.split(_MINUS, 1)


def _wanted(row: Mapping[str, Any], source: str) -> Any:
    """A value, or the difference of two; None if one of them is null."""
    values = [_value(row, part) for part in _parts(source, row)]
    if len(values) == 1:
        return values[0]
    if None in values:
        return None
    if not all(isinstance(value, (int, float)) for value in values):
        raise TypeError(f"`{source}` is a difference of {values[0]!r:.40} and {values[1]!r:.40}, which are no numbers")
    return float(values[0] - values[1])


def _value(row: Mapping[str, Any], source: str) -> Any:
    if source in row:
        return row[source]
    value: Any = row
    for key in source.split("."):
        if value is None:
            return None
        value = value[int(key)] if isinstance(value, list) and key.isdigit() else value[key]
    return value


def _look_up(row: Mapping[str, Any], source: str, target: str, name: str) -> None:
    value: Any = row
    path = [source] if source in row else source.split(".")
    for depth, key in enumerate(path):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        elif value is None:
            return
        else:
            known = user_columns(value) if isinstance(value, Mapping) else []
            near = get_close_matches(key, known, n=1, cutoff=0.6)
            guess = f"did you mean `{near[0]}`? " if near else ""
            where = f"`{'.'.join(path[:depth])}` of {name}" if depth else name
            raise DataError(
                f"`columns: {{{target}: {source}}}`: {where} has no {'key' if depth else 'column'} `{key}`: {guess}"
                f"It has {', '.join(known) or 'none'}."
            )


def _types(features: Any, columns: Mapping[str, str | None], gone: list[str]) -> Any:
    """The types of the mapped columns; None if they are not known."""
    if features is None:
        return None
    from datasets import Features, Value

    new = {column: kind for column, kind in features.items() if column not in gone}
    for target, source in columns.items():
        if source is None:
            continue
        if len(_parts(source, features)) > 1:
            new[target] = Value("float64")
            continue
        kind: Any = features
        for key in [source] if source in features else source.split("."):
            kind = kind.get(key) if isinstance(kind, Mapping) else getattr(kind, "feature", kind)
            if kind is None:
                return None
        new[target] = kind
    return Features(new)


def line_of(columns: Mapping[str, str]) -> str:
    """The mapping as a line of a recipe."""
    return "columns: {" + ", ".join(f"{target}: {source}" for target, source in columns.items()) + "}"
