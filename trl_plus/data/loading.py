"""From the data keys of a recipe to a training set and a held-out set."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_plus.data.files import READERS, DataError, is_local, split_files, test_split
from trl_plus.data.formats import Format, prepare


@dataclass(frozen=True)
class DataRequest:
    """What to load. `name` and `eval_name` are hub ids or local paths; `mixture` is TRL's list `datasets`.

    Attributes:
        test_split_required: the recipe names the test split itself, so its absence is an error.
        eval_fraction: share of the training rows to hold out where there is no test split.
        max_eval_rows: at most so many held-out rows; 0 for none, None for all.
    """

    paired_method: bool
    name: str | None = None
    config: str | None = None
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

    @property
    def label(self) -> str:
        """The training data as messages name it."""
        return self.name or " + ".join(str(entry["path"]) for entry in self.mixture)

    @property
    def local(self) -> bool:
        """Whether everything can be read without the hub."""
        names = [self.name] if self.name else [str(entry["path"]) for entry in self.mixture]
        return all(is_local(name) for name in [*names, *([self.eval_name] if self.eval_name else [])])


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
    splits = _mixture(request) if request.mixture else _splits(request.name or "", request.config, request.streaming)
    train_name = "train" if request.mixture else request.train_split
    if train_name not in splits:
        raise DataError(f"{request.label} has no split {train_name!r}: set `dataset_train_split` to {_either(splits)}.")
    train, held_out = splits[train_name], _held_out(request, splits)
    train, form, notes = prepare(train, f"{request.label} ({train_name})", request.paired_method)
    if held_out is None and request.eval_fraction and request.max_eval_rows != 0:
        train, held_out = _hold_out(train, request)
        notes.append(f"{len(held_out)} of {len(train) + len(held_out)} rows are held out (eval_fraction).")
    elif held_out is not None:
        held_out, eval_form, eval_notes = prepare(held_out, f"{request.eval_name or request.label} (held-out)",
                                                  request.paired_method)  # fmt: skip
        if eval_form.paired != form.paired:
            raise DataError(f"The training rows are {form}, the held-out rows {eval_form}: use one kind.")
        notes += eval_notes
    return Data(train, _at_most(held_out, request), form, notes)


def _splits(name: str, config: str | None, streaming: bool) -> dict[str, Any]:
    """Every split of a dataset by name."""
    import datasets

    if is_local(name):
        if config is not None:
            raise DataError(f"`dataset_config: {config}` has no meaning for the local {name}: remove it.")
        return _read_local(split_files(name), streaming)
    try:
        return dict(datasets.load_dataset(name, name=config, streaming=streaming))
    except Exception as error:  # the hub client raises many unrelated types, all with a sentence worth showing
        raise DataError(f"The dataset {name} could not be loaded from the hub: {_first_line(error)}") from error


def _read_local(files: dict[str, list[Path]], streaming: bool) -> dict[str, Any]:
    """Each split by itself, since their columns may differ."""
    return {split: _read_split(paths, streaming) for split, paths in files.items()}


def _read_split(paths: list[Path], streaming: bool) -> Any:
    import datasets

    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: it has no rows.")
    names = [str(path) for path in paths]
    try:
        return datasets.load_dataset(READERS[paths[0].suffix], data_files=names, split="train", streaming=streaming)
    except Exception as error:  # pyarrow, pandas and json each raise their own types
        for path in paths:
            _refuse_broken_line(path)
            _refuse_cut_parquet(path)
        cause = error.__cause__ or error
        raise DataError(f"{', '.join(names)}: the rows cannot be read as one table: {_first_line(cause)}") from error


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


def _mixture(request: DataRequest) -> dict[str, Any]:
    from transformers import set_seed
    from trl import DatasetMixtureConfig, get_dataset

    config = DatasetMixtureConfig(
        datasets=[dict(entry) for entry in request.mixture],
        streaming=request.mixture_streaming,
        test_split_size=request.mixture_test_size,
    )
    set_seed(request.seed)  # TRL's split draws from NumPy's global state: every rank and a resumed run must agree
    try:
        return dict(get_dataset(config))
    except Exception as error:  # see _splits
        raise DataError(f"The mixture {request.label} could not be loaded: {_first_line(error)}") from error


def _held_out(request: DataRequest, splits: Mapping[str, Any]) -> Any | None:
    """The rows of the test split or of `eval_dataset_name`; None where there are none."""
    if request.max_eval_rows == 0:
        return None
    if request.eval_name is not None:
        other = _splits(request.eval_name, None, request.streaming)
        name = next((name for name in (request.test_split, request.train_split, "train") if name in other), None)
        if name is None:
            raise DataError(f"{request.eval_name} has none of the splits test and train, but {_either(other)}.")
        return other[name]
    if request.test_split_required and request.test_split not in splits:
        raise DataError(
            f"{request.label} has no split {request.test_split!r}: set `dataset_test_split` to {_either(splits)}, or "
            "remove it and set `eval_fraction`."
        )
    name = test_split([name for name in splits if name != request.train_split], request.test_split)
    return None if name is None else splits[name]


def _hold_out(train: Any, request: DataRequest) -> tuple[Any, Any]:
    if not hasattr(train, "train_test_split"):
        raise DataError("`eval_fraction` needs rows that can be counted: remove `dataset_streaming`.")
    if len(train) < 2:
        raise DataError(f"{request.label} has {len(train)} row: nothing can be held out, remove `eval_fraction`.")
    parts = train.train_test_split(test_size=request.eval_fraction, seed=request.seed)
    return parts["train"], parts["test"]


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
