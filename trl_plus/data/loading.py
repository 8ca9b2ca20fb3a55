"""From the data keys of a recipe to a training set and a held-out set."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trl_plus.data.columns import mapped
from trl_plus.data.conversion import AlreadyConverted, convert_rows
from trl_plus.data.files import test_split
from trl_plus.data.formats import Format, prepare, utf8
from trl_plus.data.forms import in_form
from trl_plus.data.mixture import DataRequest, mix
from trl_plus.data.numbering import mark_groups, number_rows, split_groups
from trl_plus.data.reading import read_splits
from trl_plus.errors import DataError

__all__ = ["Data", "DataRequest", "RawData", "finish", "hold_out", "load", "load_raw"]


@dataclass(frozen=True)
class RawData:
    """Rows that were read and converted, and that nothing has checked yet.

    Attributes:
        eval: the test split or the rows of `eval_dataset_name`; None where there are none. What `eval_fraction` and
            `max_eval_rows` ask for is done by `hold_out`.
        name, eval_name: the rows as messages name them.
        notes: what was done to them, one sentence each.
        unused_splits: splits of the training data that are neither trained on nor held out.
    """

    request: DataRequest
    train: Any
    eval: Any | None
    name: str
    eval_name: str
    notes: list[str]
    unused_splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Loaded and recognised data. `eval` is None where nothing is held out; `notes` tell what was done."""

    train: Any
    eval: Any | None
    format: Format
    notes: list[str]


def load(request: DataRequest) -> Data:
    """Load, recognise and prepare the training rows and the held-out rows.

    Raises:
        DataError: a file, split or dataset cannot be read, or its rows do not fit the method.
    """
    return finish(load_raw(request))


def load_raw(request: DataRequest) -> RawData:
    """Load the rows, convert them and bring them into form, without looking at what comes out.

    Raises:
        DataError: a file, split or dataset cannot be read, or is not of the shape that the converter takes.
    """
    splits, notes = mix(request) if request.mixture else (_splits(request, request.name, request.config), [])
    train_name = "train" if request.mixture else request.train_split
    if train_name not in splits:
        raise DataError(f"{request.label} has no split {train_name!r}: set `dataset_train_split` to {_either(splits)}.")
    train, held_out = splits[train_name], _held_out(request, splits)
    name, eval_name = f"{request.label} ({train_name})", f"{request.eval_name or request.label} (held-out)"
    train = mapped(train, None if request.mixture else request.columns, name)
    held_out = _mapped_eval(held_out, request, eval_name)
    if request.converter is not None:
        if request.holds_out and held_out is None and hasattr(train, "__len__"):
            train = mark_groups(train)
        train, notes = convert_rows(train, request.converter, name, request.paired_method)
        held_out, eval_notes = _converted_eval(held_out, request, eval_name)
        name = f"{request.label} ({train_name}, converted)"
        notes = [*notes, *eval_notes]
    with utf8(name):
        train = in_form(train, name)
    with utf8(eval_name):
        held_out = None if held_out is None else in_form(held_out, eval_name)
    return RawData(request, train, held_out, name, eval_name, notes, _unused(request, splits))


def finish(raw: RawData) -> Data:
    """Recognise and prepare raw rows, hold out what the request asks for, and balance the others if it asks for that.

    Raises:
        DataError: the rows do not fit the method, or cannot be held out or balanced.
    """
    paired, held_out = raw.request.paired_method, raw.eval
    train, form, notes = prepare(raw.train, raw.name, paired)
    if held_out is not None:
        held_out, eval_form, eval_notes = prepare(held_out, raw.eval_name, paired)
        if eval_form.paired != form.paired:
            raise DataError(f"The training rows are {form}, the held-out rows {eval_form}: use one kind.")
        notes += eval_notes
    done = hold_out(replace(raw, train=train, eval=held_out, notes=[*raw.notes, *notes]))
    if not raw.request.balance:
        return Data(done.train, done.eval, form, done.notes)
    from trl_plus.data.balance import balanced  # needs numpy

    train, note = balanced(done.train, raw.name)
    return Data(train, done.eval, form, [*done.notes, note])


def hold_out(raw: RawData) -> RawData:
    """The same rows with `eval_fraction` taken from the training rows where there are no others, and `eval` cut to
    `max_eval_rows`. The same rows go whether they are prepared or not.

    Raises:
        DataError: there are too few rows, or they are a stream.
    """
    request, train, held_out, notes = raw.request, raw.train, raw.eval, raw.notes
    if held_out is None and request.holds_out:
        train, held_out = _take(train, request)
        notes = [*notes, f"{len(held_out)} of {len(train) + len(held_out)} rows are held out (eval_fraction)."]
    return replace(raw, train=train, eval=_at_most(held_out, request), notes=notes)


def _converted_eval(held_out: Any | None, request: DataRequest, name: str) -> tuple[Any | None, list[str]]:
    """Held-out rows of another dataset may need no conversion."""
    if held_out is None or request.converter is None:
        return held_out, []
    try:
        return convert_rows(held_out, request.converter, name, request.paired_method)
    except AlreadyConverted:
        if request.eval_name is None:
            raise
        return held_out, [f"{name}: the rows are used as they are, `converter: {request.converter}` is not for them."]


def _splits(request: DataRequest, name: str | None, config: str | None) -> dict[str, Any]:
    """Every split of a dataset by name, its rows numbered where the request says so."""
    splits = read_splits(name or "", config, request.streaming)
    return {split: number_rows(rows, request.row_column, f"{name} ({split})") for split, rows in splits.items()}


def _mapped_eval(held_out: Any | None, request: DataRequest, name: str) -> Any | None:
    """Held-out rows under the names of `columns`. Another dataset may have these names already."""
    if held_out is None or not request.columns:
        return held_out
    if request.eval_name is not None and not _has_sources(held_out, request.columns):
        return held_out
    return mapped(held_out, request.columns, name)


def _has_sources(dataset: Any, columns: Mapping[str, str | None]) -> bool:
    known = dataset.column_names or list(next(iter(dataset), {}))
    sources = [source or target for target, source in columns.items()]
    return any(source in known or source.split(".")[0] in known for source in sources)


def _held_out(request: DataRequest, splits: Mapping[str, Any]) -> Any | None:
    """The rows of the test split or of `eval_dataset_name`; None where there are none."""
    if request.max_eval_rows == 0:
        return None
    if request.eval_name is not None:
        other = _splits(request, request.eval_name, None)
        name = next((name for name in (request.test_split, request.train_split, "train") if name in other), None)
        if name is None:
            raise DataError(f"{request.eval_name} has none of the splits test and train, but {_either(other)}.")
        return other[name]
    if request.test_split_required and request.test_split not in splits:
        raise DataError(
            f"{request.label} has no split {request.test_split!r}: set `dataset_test_split` to {_either(splits)}, or "
            "remove it and set `eval_fraction`."
        )
    name = _own_test_split(request, splits)
    return None if name is None else splits[name]


def _own_test_split(request: DataRequest, splits: Mapping[str, Any]) -> str | None:
    return test_split([name for name in splits if name != request.train_split], request.test_split)


def _unused(request: DataRequest, splits: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that a dataset has beside the one that is trained on and the one that is held out."""
    if request.mixture:
        return ()
    own = None if request.eval_name is not None else _own_test_split(request, splits)
    return tuple(name for name in splits if name not in (request.train_split, own))


def _take(train: Any, request: DataRequest) -> tuple[Any, Any]:
    if not hasattr(train, "train_test_split"):
        raise DataError("`eval_fraction` needs rows that can be counted: remove `dataset_streaming`.")
    if len(train) < 2:
        raise DataError(f"{request.label} has {len(train)} row: nothing can be held out, remove `eval_fraction`.")
    return split_groups(train, request.eval_fraction, request.seed)


def _at_most(held_out: Any | None, request: DataRequest) -> Any | None:
    limit = request.max_eval_rows
    if held_out is None or limit is None:
        return held_out
    if not hasattr(held_out, "select"):
        return held_out.take(limit)
    if len(held_out) <= limit:
        return held_out
    return held_out.shuffle(seed=request.seed).select(range(limit))


def _either(splits: Mapping[str, Any]) -> str:
    return " or ".join(splits)
