"""The data keys of a recipe as a request to load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl_plus.data.files import is_local


@dataclass(frozen=True)
class DataRequest:
    """A request to load. `name` and `eval_name` are hub ids or local paths; `mixture` is TRL's list `datasets`.

    Attributes:
        columns: new names of the columns of `name` and `eval_name`, see `data.columns`.
        converter: name of the converter of the rows of `name` and `eval_name`; an entry of `mixture` names its own.
        test_split_required: the recipe names the test split itself, so its absence is an error.
        eval_fraction: share of the training rows to hold out where there is no test split.
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
