"""A converter applied to a dataset: table or stream, every row accounted for."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trl_plus._version import __version__
from trl_plus.data.columns import line_of
from trl_plus.data.converters import CONVERTERS, Row, Shape, Unconvertible, WrongShape, convert, recognise, shape_of
from trl_plus.data.features import features_of
from trl_plus.data.formats import detect, refuse_names
from trl_plus.data.numbering import user_columns
from trl_plus.data.suggestions import mapping_for
from trl_plus.errors import DataError

_IN_FORM = "in form"  # in the place of a problem: a row that needs no conversion
_POSITION = "_position"  # of the row that a converted row was made from
_LOOKED_AT = 100  # rows of a stream that are tried before it is handed on
_log = logging.getLogger(__name__)


class AlreadyConverted(DataError):
    """The converter does not take the rows, since they have the method's form without it."""


@dataclass(frozen=True)
class _Conversion:
    """One converter applied to one dataset. `version` keeps results of other versions out of the cache."""

    converter: str
    shape: Shape
    name: str
    paired_method: bool
    columns: tuple[str, ...]
    version: str = __version__

    @property
    def used(self) -> list[str]:
        return list((self.shape.columns(self.columns) or {}).values())

    def rows(self, row: Row, index: int) -> list[Row]:
        """The rows that row `index` becomes; Unconvertible as in `convert`, any other fault a DataError."""
        try:
            return convert(self.shape, row, self.paired_method)
        except WrongShape as error:
            fault = f"{self.name}, row {index}: {error}, which `converter: {self.converter}` does not take"
            raise _refusal(fault, row, self.paired_method) from error

    def in_form(self, row: Row) -> bool:
        """True if the row needs no conversion. The converter takes it where others do."""
        columns = self.shape.columns(self.columns) or {}
        return self.shape.in_form is not None and self.shape.in_form({f: row[c] for f, c in columns.items()})

    def refuse(self, values: Callable[[str], Iterable[Any]]) -> None:
        """A DataError where the values of a column (name -> values) cannot be used together."""
        field, fault = self.shape.refuse or ("", None)
        problem = fault and fault(values((self.shape.columns(self.columns) or {})[field]))
        if problem:
            raise DataError(f"{self.name}: {problem}.")


def convert_rows(dataset: Any, converter: str, name: str, paired_method: bool) -> tuple[Any, list[str]]:
    """The rows of a dataset converted, and what was done, one sentence each.

    Rows that cannot become training rows are left out, counted, and the first three named with the reason (`LeftOut`).
    A stream is not read ahead: there the same is logged as a warning when it happens.

    Args:
        converter: a name in CONVERTERS.
        name: the dataset, as messages name it.
        paired_method: whether the method trains on pairs only.

    Raises:
        AlreadyConverted: the rows have the form that the method takes.
        DataError: the rows are not of a shape that the converter takes, or none can be converted.
    """
    first = next(iter(dataset), None)
    if first is None:
        return dataset, []
    conversion = _conversion(first, converter, name, paired_method)
    if conversion.shape.gather is not None:
        return gathered(dataset, conversion.shape, conversion.name, converter)
    return (_table if hasattr(dataset, "__len__") else _stream)(dataset, conversion)


def _conversion(first: Row, converter: str, name: str, paired_method: bool) -> _Conversion:
    if converter not in CONVERTERS:
        raise DataError(f"There is no converter {converter!r}: the converters are {', '.join(CONVERTERS)}.")
    if converter == "pairs_to_unpaired" and paired_method:
        raise DataError(
            "`converter: pairs_to_unpaired` makes labelled rows, but the method compares pairs: remove `converter`, or "
            "use `method: kto`."
        )
    shape = shape_of(converter, list(first), first)
    if shape is None:
        fault = f"{name}, row 0 has the columns {', '.join(user_columns(first))}, but `converter: {converter}` needs "
        fault += " and ".join(_missing(converter, list(first), paired_method))
        raise _refusal(fault, first, paired_method)
    return _Conversion(converter, shape, name, paired_method, tuple(first))


def _missing(converter: str, columns: list[str], paired_method: bool) -> list[str]:
    """The fields that are missing for the nearest shape of the converter that the method can train on."""
    shapes = [shape for shape in CONVERTERS[converter] if not ((paired_method and shape.labelled) or shape.holds)]
    fields = [[names for names in shape.needs if not set(names) & set(columns)] for shape in shapes]
    return [_any_of(names) for names in min(fields, key=len)]


def _any_of(names: Sequence[str]) -> str:
    """All of a few names, or the first of many."""
    shown = [f"`{name}`" for name in names[: 3 if len(names) == 3 else 2]]
    return " or ".join([*shown, f"another of {len(names)} names"] if len(names) > 3 else shown)


def _refusal(fault: str, row: Row, paired_method: bool) -> DataError:
    other = recognise(row, paired_method)
    if other != "hh":  # two transcripts are a form of text pairs as well
        try:
            detect(row, "", paired_method)
            refuse_names(row, "")
        except DataError:
            pass
        else:
            return AlreadyConverted(f"{fault}: remove `converter`, the rows have the form that the method takes.")
    if other is not None:
        return DataError(f"{fault}: use `converter: {other}`, which takes these rows.")
    line = line_of(mapping_for(row, paired_method))
    return DataError(
        f"{fault}: rename the columns with `{line}`, or choose the converter by the rows shown in docs/data.md."
    )


def _in_form(conversion: _Conversion, row: Row) -> DataError:
    fault = f"{conversion.name}: every row holds messages with {{role, content}} and the usual names of roles already, "
    return _refusal(
        fault + f"which `converter: {conversion.converter}` would not change", row, conversion.paired_method
    )


def _rows_of(batch: Any, columns: list[str]) -> Iterator[Row]:
    return (dict(zip(columns, values, strict=True)) for values in zip(*(batch[c] for c in columns), strict=True))


def _columns_of(rows: list[Row], names: list[str]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def _table(dataset: Any, conversion: _Conversion) -> tuple[Any, list[str]]:
    """Two passes, since what a pass counts is lost where its result comes from the cache, but not what it writes."""
    from datasets import Features, Value

    conversion.refuse(lambda column: dataset[column][:])
    found = dataset.select_columns(conversion.used).map(
        _problems,
        batched=True,
        with_indices=True,
        remove_columns=conversion.used,
        fn_kwargs={"conversion": conversion},
        features=Features({"problem": Value("string")}),
        desc=f"converter: {conversion.converter}, looking",
    )["problem"][:]
    if all(problem == _IN_FORM for problem in found):
        raise _in_form(conversion, dataset[0])
    problems = {index: problem for index, problem in enumerate(found) if problem not in (None, _IN_FORM)}
    if len(problems) == len(dataset):
        raise _nothing_left(conversion, "row", problems[0])
    good = dataset.select([index for index in range(len(dataset)) if index not in problems]) if problems else dataset
    made = _made(good, conversion)
    return made, [_note(conversion, len(dataset), len(made), problems)]


def _made(dataset: Any, conversion: _Conversion) -> Any:
    """The converted columns beside the others, which are repeated where rows multiply and never decoded."""
    from datasets import Features, Value, concatenate_datasets

    used = conversion.used
    row = {**dict.fromkeys(conversion.columns), **dataset.select_columns(used)[0]}
    others = [column for column in conversion.columns if column not in used]
    sample = {name: value for name, value in conversion.rows(row, 0)[0].items() if name not in others}
    made = dataset.select_columns(used).map(
        _converted,
        batched=True,
        with_indices=True,
        remove_columns=used,
        fn_kwargs={"conversion": conversion, "names": list(sample)},
        features=Features({**features_of(dataset.features, sample, used), _POSITION: Value("int64")}),
        desc=f"converter: {conversion.converter}",
    )
    positions = made[_POSITION][:]
    made, rest = made.remove_columns(_POSITION), dataset.select_columns(others)
    if not others:
        return made
    return concatenate_datasets([rest.select(positions) if conversion.shape.many else rest, made], axis=1)


def _problems(batch: Any, indices: list[int], conversion: _Conversion) -> dict[str, list[str | None]]:
    found: list[str | None] = []
    for index, row in zip(indices, _rows_of(batch, conversion.used), strict=True):
        try:
            conversion.rows(row, index)
            found.append(_IN_FORM if conversion.in_form(row) else None)
        except Unconvertible as error:
            found.append(str(error))
    return {"problem": found}


def _converted(batch: Any, indices: list[int], conversion: _Conversion, names: list[str]) -> dict[str, list[Any]]:
    made = [(index, new) for index, row in zip(indices, _rows_of(batch, conversion.used), strict=True)
            for new in conversion.rows(row, index)]  # fmt: skip
    return {**_columns_of([new for _, new in made], names), _POSITION: [index for index, _ in made]}


def _note(conversion: _Conversion, before: int, after: int, problems: dict[int, str]) -> str:
    good = before - len(problems)
    said = f"{conversion.name}: `converter: {conversion.converter}`: {good} of {before} rows converted"
    said += f" into {after}" if after != good else ""
    if not problems:
        return f"{said}."
    named = "; ".join(f"row {index}: {problem}" for index, problem in islice(problems.items(), SHOWN))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    text = f"{said}, {len(problems)} left out: {named}{more}."
    return LeftOut.of_rows(text, conversion.name, problems, before)


def _nothing_left(conversion: _Conversion, rows: str, problem: str) -> DataError:
    return DataError(
        f"{conversion.name}: `converter: {conversion.converter}` can convert no {rows} (row 0: {problem}): choose the "
        "converter by the rows shown in docs/data.md."
    )


def _stream(dataset: Any, conversion: _Conversion) -> tuple[Any, list[str]]:
    problem, sample = "", None
    conversion.refuse(lambda column: [row[column] for row in islice(dataset, _LOOKED_AT)])
    for index, row in enumerate(islice(dataset, _LOOKED_AT)):
        try:
            sample = conversion.rows(row, index)[0]
            break
        except Unconvertible as error:
            problem = problem or str(error)
    if sample is None:
        raise _nothing_left(conversion, f"row of the first {_LOOKED_AT}", problem)
    source = dataset.features
    dataset = (dataset if source is None else dataset.decode(False)).map(  # an image is passed on as it is
        _StreamConversion(conversion, list(sample)),
        batched=True,
        with_indices=True,
        remove_columns=list(conversion.columns),
        features=source and features_of(source, sample, conversion.used),
    )
    note = f"{conversion.name}: `converter: {conversion.converter}` converts the stream; rows that it has to leave out"
    return dataset, [f"{note} are named as warnings in the log."]


class _StreamConversion:
    """Converts batches of a stream and warns of the rows that are left out: the first three, then the count at each
    power of ten. Each row is counted once, however often the stream is read; every worker process counts its own.
    Values that cannot be used together are refused as soon as a batch holds the last of them."""

    def __init__(self, conversion: _Conversion, names: list[str]):
        self.conversion, self.names, self.left_out, self.last = conversion, names, 0, -1
        self.seen: set[Any] = set()

    def __call__(self, batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        self.conversion.refuse(lambda column: self._seen(batch[column]))
        out: list[Row] = []
        for index, row in zip(indices, _rows_of(batch, list(self.conversion.columns)), strict=True):
            try:
                out += self.conversion.rows(row, index)
            except Unconvertible as error:
                self._leave_out(index, error)
        return _columns_of(out, self.names)

    def _seen(self, values: Iterable[Any]) -> set[Any]:
        """Every number of the column so far, in this batch and those before it."""
        self.seen |= {value for value in values if isinstance(value, (int, float))}
        return self.seen

    def _leave_out(self, index: int, error: Unconvertible) -> None:
        if index <= self.last:
            return
        self.last = index
        self.left_out += 1
        name = f"{self.conversion.name}: `converter: {self.conversion.converter}`"
        if self.left_out <= SHOWN:
            _log.warning("%s leaves out row %d of the stream: %s.", name, index, error)
        elif str(self.left_out).strip("0") == "1":
            _log.warning("%s has left out %d rows of the stream so far.", name, self.left_out)


# -- rows that are made of several rows of a table: trees of messages, one scored answer a row ----------------------


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


SHOWN = 3  # rows that a message names


class LeftOut(str):
    """A note that says which rows of a table a converter has left out, together with what it counts.

    Attributes:
        name: the rows as messages name them.
        rows, of: how many were left out, and of how many.
        first: the first of them, position -> reason.
    """

    name: str
    rows: int
    of: int
    first: dict[int, str]

    @classmethod
    def of_rows(cls, text: str, name: str, problems: dict[int, str], of: int) -> "LeftOut":
        note = cls(text)
        note.name, note.rows, note.of = name, len(problems), of
        note.first = dict(list(problems.items())[:SHOWN])
        return note
