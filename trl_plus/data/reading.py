"""Local files and hub datasets to splits, and one sentence for whatever cannot be read."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

from trl_plus.data.files import READERS, is_local, split_files
from trl_plus.errors import DataError

csv.field_size_limit(2**31 - 1)  # 128 KiB otherwise, which an answer can exceed

# Without them pandas takes answers such as "NA", "None" and "null" for empty cells
_OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False, "na_values": [""]}}


def read_splits(name: str, config: str | None, streaming: bool) -> dict[str, Any]:
    """Every split of a dataset by name.

    Raises:
        DataError: a file or the hub dataset cannot be read.
    """
    import datasets

    if is_local(name):
        return _read_local(split_files(name, config), streaming)
    try:
        return dict(datasets.load_dataset(name, name=config, streaming=streaming))
    except Exception as error:  # the hub client raises many unrelated types, all with a sentence worth showing
        raise DataError(f"The dataset {name} could not be loaded from the hub: {first_line(error)}") from error


def _read_local(files: dict[str, list[Path]], streaming: bool) -> dict[str, Any]:
    """Each split by itself, since their columns may differ."""
    return {split: read_files(paths, streaming) for split, paths in files.items()}


def read_files(paths: list[Path], streaming: bool, split: str = "train") -> Any:
    """The rows of files of one kind.

    Args:
        split: "train" for all rows, or a slice such as "train[:10%]".

    Raises:
        DataError: a file is empty, broken or cut off, or the files have different columns.
    """
    import datasets

    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: it has no rows.")
    names, reader = [str(path) for path in paths], READERS[paths[0].suffix]
    options = _OPTIONS.get(reader, {}) | ({"sep": _separator(paths)} if reader == "csv" else {})
    for path in paths:
        _refuse_unquoted(path, options.get("sep", ","), rows=1)
    try:
        return datasets.load_dataset(reader, data_files=names, split=split, streaming=streaming, **options)
    except Exception as error:  # pyarrow, pandas and json each raise their own types
        for path in paths:
            _refuse_other_encoding(path)
            _refuse_unquoted(path, options.get("sep", ","))
            _refuse_broken_line(path)
            _refuse_cut_parquet(path)
        _refuse_different_files(paths)
        cause = error.__cause__ or error
        fault = f"{', '.join(names)}: the rows cannot be read as one table: {first_line(cause)}"
        raise DataError(f"{fault}: give every row the same columns of the same types.") from error


def _separator(paths: list[Path]) -> str:
    """The separator of the columns of CSV files: a comma, unless a header has no comma but semicolons or tabs."""
    found = {}
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
        marks = [mark for mark in (";", "\t") if mark in header]
        found[marks[0] if "," not in header and len(marks) == 1 else ","] = path
    if len(found) > 1:
        raise DataError(
            f"{' and '.join(map(str, found.values()))} separate their columns differently: use commas in all."
        )
    return next(iter(found))


def _refuse_other_encoding(path: Path) -> None:
    """Name the first line of a text file that is not UTF-8."""
    if path.suffix not in (".csv", ".tsv", ".txt", ".json", ".jsonl"):
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number} is not UTF-8: save the file as UTF-8 (in a spreadsheet: CSV UTF-8), or run "
                    f"`iconv -f CP1252 -t UTF-8 {path.name} > utf8{path.suffix}` if it comes from Windows."
                ) from error


def _refuse_unquoted(path: Path, separator: str, rows: int | None = None) -> None:
    """Name the first row of a CSV file that has more values than its header.

    pandas refuses such a row, unless it is the first: then it takes the first column for row names, and values move.

    Args:
        rows: how many rows to look at; None for all.
    """
    if path.suffix not in (".csv", ".tsv"):
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.reader(file, delimiter=separator)
        columns = len(next(lines, []))
        for row in islice(lines, rows):
            if len(row) > columns:
                raise DataError(
                    f"{path}, line {lines.line_num} has {len(row)} values, but the header names {columns} columns: put "
                    f"texts that hold {'a comma' if separator == ',' else 'the separator'} in double quotes."
                )


def _refuse_broken_line(path: Path) -> None:
    """Name the line of a JSON file that is not JSON; the readers only say that there is one."""
    if path.suffix not in (".jsonl", ".json"):
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(1)
        if path.suffix == ".json" and start == "[":  # one list of rows
            try:
                json.loads(start + file.read())
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {error.lineno} is not JSON: {error}. Is the file cut off?") from error
            return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}. Mend or remove the line.") from error


def _refuse_cut_parquet(path: Path) -> None:
    """Say of a parquet file that its end is missing, where its index is."""
    if path.suffix != ".parquet":
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        if file.read() != b"PAR1":
            raise DataError(f"{path} is cut off: its end is missing. Copy or download it again.")


def _refuse_different_files(paths: list[Path]) -> None:
    """Name the first file whose columns, or whose kinds of values, differ from those of the first file."""
    if len(paths) == 1:
        return
    first = _first_row(paths[0])
    for path in paths[1:]:
        row = _first_row(path)
        if first and row and set(row) != set(first):
            raise DataError(
                f"{path} has the columns {', '.join(row)}, but {paths[0]} has {', '.join(first)}: give them the same "
                "columns, or make each file an entry of `datasets`, with a `converter` where it needs one."
            )
        for column in sorted(set(first) & set(row)):
            kind, other = _value_kind(first[column]), _value_kind(row[column])
            if kind is not None and other is not None and kind != other:
                raise DataError(
                    f"`{column}` is {kind} in {paths[0]}, but {other} in {path}: use one kind, or make each file an "
                    "entry of `datasets`, with a `converter` where it needs one."
                )


def _first_row(path: Path) -> dict[str, Any]:
    """The first row of a file; empty where it has none that can be read."""
    import datasets

    try:
        rows = datasets.load_dataset(READERS[path.suffix], data_files=str(path), streaming=True, split="train")
        return next(iter(rows), {})
    except Exception:  # this only looks for a better word on a failure that is told anyway
        return {}


def _value_kind(value: Any) -> str | None:
    """The kind of a value as messages name it; None of null."""
    names = {str: "text", list: "a list", dict: "a mapping", bool: "true or false", int: "a number", float: "a number"}
    return None if value is None else names.get(type(value), type(value).__name__)


def first_line(error: BaseException) -> str:
    """The text of an error, cut to one line. A failed cast names the types on further lines, which are joined."""
    said = str(error).strip() or type(error).__name__
    return " ".join(said.split())[:500] if said.startswith("Couldn't cast") else said.splitlines()[0]
