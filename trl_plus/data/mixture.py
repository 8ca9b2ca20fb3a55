"""A request to load, and the list `datasets`: read as TRL reads it, or from local files, and mixed as TRL mixes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl_plus.data.columns import mapped
from trl_plus.data.conversion import convert_rows
from trl_plus.data.features import is_text, with_common_types
from trl_plus.data.files import as_path, is_local, split_files
from trl_plus.data.numbering import mark_groups, mark_source, number_rows, split_groups
from trl_plus.data.reading import first_line, read_files
from trl_plus.errors import DataError

# Keys with which an entry asks for a reading of its own
_READING_KEYS = ("name", "data_dir", "data_files")


@dataclass(frozen=True)
class DataRequest:
    """A request to load. `name` and `eval_name` are hub ids or local paths; `mixture` is TRL's list `datasets`.

    Attributes:
        columns: new names of the columns of `name` and `eval_name`, see `data.columns`.
        converter: name of the converter of the rows of `name` and `eval_name`; an entry of `mixture` names its own.
        test_split_required: the recipe names the test split itself, so its absence is an error.
        eval_fraction: share of the training rows to hold out if there is no test split.
        max_eval_rows: at most so many held-out rows; 0 for none, None for all.
        balance: weigh the training rows by `data.balance`; `load` and `finish` do it.
        row_column: name of an int64 column that every row then carries: the 0-based index of the row it was made from,
            in the split as it was read, before conversion, mixing and hold-out. None for no such column.
    """

    paired_method: bool
    name: str | None = None
    config: str | None = None
    columns: Mapping[str, str | None] | None = None
    converter: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    test_split_required: bool = False
    streaming: bool = False
    mixture: list[Mapping[str, Any]] = field(default_factory=list)
    mixture_streaming: bool = False
    mixture_test_size: float | None = None
    eval_name: str | None = None
    eval_fraction: float = 0.0
    max_eval_rows: int | None = None
    seed: int = 42
    balance: bool = False
    row_column: str | None = None

    @property
    def holds_out(self) -> bool:
        """True if training rows are held out where there are no others."""
        return bool(self.eval_fraction) and self.max_eval_rows != 0

    @property
    def label(self) -> str:
        """The training data as messages name it."""
        return self.name or " + ".join(str(entry["path"]) for entry in self.mixture)

    @property
    def local(self) -> bool:
        """True if everything can be read without the hub."""
        names = [self.name] if self.name else [str(entry["path"]) for entry in self.mixture]
        return all(is_local(name) for name in [*names, *([self.eval_name] if self.eval_name else [])])

    @property
    def source_column(self) -> str | None:
        """Name of a second int64 column beside `row_column`, in the rows of a mixture: the index of their entry."""
        return f"{self.row_column}_source" if self.row_column and self.mixture else None


def mix(request: DataRequest) -> tuple[dict[str, Any], list[str]]:
    """The splits of a mixture ("train", and "test" with `test_split_size`), and what each entry gave.

    Without `fraction` the entries are concatenated. With it, map-style rows are those of TRL: of each entry the first
    rows, as many as give the shares without repeating a row. A stream, for which TRL has no fractions, draws the entry
    of each row with the run's seed, in the proportion of the shares, and ends when one entry ends.

    Raises:
        DataError: an entry cannot be read, the fractions give no shares, or the columns do not fit together.
    """
    names = [str(entry["path"]) for entry in request.mixture]
    try:
        parts, notes = _entries(request)
        train, said = _mixed(parts, names, _shares(request.mixture), request)
        return _split(train, request), [*notes, *said]
    except DataError:
        raise
    except Exception as error:  # the readers and the hub client raise many unrelated types
        raise DataError(f"The mixture {request.label} could not be loaded: {first_line(error)}") from error


def _entries(request: DataRequest) -> tuple[list[Any], list[str]]:
    """The rows of each entry, converted where it names a converter."""
    parts, notes = [], []
    converters = [entry.get("converter") for entry in request.mixture]
    parted = request.holds_out or request.mixture_test_size is not None
    grouped = any(converters) and parted and not request.mixture_streaming
    groups = 0
    for index, (entry, converter) in enumerate(zip(request.mixture, converters, strict=True)):
        part = _entry(entry, index, request)
        if grouped:
            part, groups = mark_groups(part, groups), groups + len(part)
        if converter is not None:
            part, said = convert_rows(part, converter, str(entry["path"]), request.paired_method)
            notes += said
        parts.append(part)
    return parts, notes


def _entry(entry: Mapping[str, Any], index: int, request: DataRequest) -> Any:
    """The rows of one entry, with its columns selected."""
    path = str(entry["path"])
    own_files = is_local(path) and not as_path(path).is_dir() and not any(entry.get(key) for key in _READING_KEYS)
    rows = _local(entry, request.mixture_streaming) if own_files else _as_trl(entry, request.mixture_streaming)
    columns = entry.get("columns")
    if isinstance(columns, Mapping):
        rows = mapped(rows, columns, path)
    rows = number_rows(rows, request.row_column, path)
    return mark_source(rows, request.source_column, index, path)


def _as_trl(entry: Mapping[str, Any], streaming: bool) -> Any:
    from trl import DatasetMixtureConfig, get_dataset

    ours = ("fraction", "converter", *(("columns",) if isinstance(entry.get("columns"), Mapping) else ()))
    alone = {key: value for key, value in entry.items() if key not in ours}
    return get_dataset(DatasetMixtureConfig(datasets=[alone], streaming=streaming))["train"]


def _local(entry: Mapping[str, Any], streaming: bool) -> Any:
    """The rows of local files; `split` may be a slice, as in `datasets`."""
    path, split = str(entry["path"]), str(entry.get("split") or "train")
    files = split_files(path)
    word = re.match(r"\w*", split)
    name = word[0] if word else ""
    if name not in files:
        raise DataError(f"{path} has no split {name!r}: set `split` to {' or '.join(files)}.")
    rows = read_files(files[name], streaming, f"train{split.removeprefix(name)}")
    columns = entry.get("columns")
    return rows.select_columns(columns) if isinstance(columns, list) else rows


def _shares(mixture: list[Mapping[str, Any]]) -> list[float] | None:
    """The share of each entry, summing to 1; None where no entry has a `fraction`."""
    fractions = [entry.get("fraction") for entry in mixture]
    if all(fraction is None for fraction in fractions):
        return None
    given = [fraction for fraction in fractions if fraction is not None]
    if len(given) < len(fractions):
        raise DataError("`fraction` must be set for every entry of `datasets` or for none: add the missing ones.")
    if not all(math.isfinite(fraction) and fraction >= 0 for fraction in given) or not sum(given) > 0:
        raise DataError(f"`fraction` is {', '.join(map(str, given))}: give numbers of at least 0, one of them above.")
    return [fraction / sum(given) for fraction in given]


def _mixed(
    parts: list[Any], names: list[str], shares: list[float] | None, request: DataRequest
) -> tuple[Any, list[str]]:
    import datasets

    _refuse_different_types(parts, names)
    parts = with_common_types(parts)
    if request.mixture_streaming:
        if shares is None:
            return datasets.concatenate_datasets(parts), []
        drawn = [index for index, share in enumerate(shares) if share > 0]  # one of share 0 would never end the stream
        train = datasets.interleave_datasets(
            [parts[index] for index in drawn],
            probabilities=[shares[index] for index in drawn],
            seed=request.seed,
            stopping_strategy="first_exhausted",
        )
        said = ", ".join(f"{share:.1%} {name}" for share, name in zip(shares, names, strict=True))
        return train, [f"The stream draws each row from {said} (`fraction`), and ends when one of them ends."]
    sizes = [len(part) for part in parts]
    if shares is not None:
        total = min(size / share for size, share in zip(sizes, shares, strict=True) if share > 0)
        parts = [part.select(range(round(share * total))) for part, share in zip(parts, shares, strict=True)]
    counts = zip(parts, sizes, names, strict=True)
    said = ", ".join(f"{len(part)} of {size} rows of {name}" for part, size, name in counts)
    return datasets.concatenate_datasets(parts), [f"The mixture holds {said}."]


def _refuse_different_types(parts: list[Any], names: list[str]) -> None:
    """Name the first column that is text in one entry and messages in another."""
    found: dict[str, tuple[str, str]] = {}
    for part, name in zip(parts, names, strict=True):
        for column, feature in (part.features or {}).items():
            kind = "text" if is_text(feature) else "a list" if hasattr(feature, "feature") else None
            if kind is None:
                continue
            other, where = found.setdefault(column, (kind, name))
            if other != kind:
                raise DataError(
                    f"`{column}` is {other} in {where}, but {kind} in {name}: give the entry that needs one a "
                    "`converter`, or use one kind."
                )


def _split(train: Any, request: DataRequest) -> dict[str, Any]:
    from transformers import set_seed

    set_seed(request.seed)  # TRL's split draws from NumPy's global state: every rank and a resumed run must agree
    if request.mixture_test_size is None:
        return {"train": train}
    if not hasattr(train, "train_test_split"):
        raise DataError("`test_split_size` needs rows that can be counted: remove `streaming`.")
    return dict(zip(("train", "test"), split_groups(train, request.mixture_test_size, seed=None), strict=True))
