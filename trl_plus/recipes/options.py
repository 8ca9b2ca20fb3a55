"""The recipe keys that are ours: how a run is evaluated and reported. Everything else is TRL's or transformers'."""

from dataclasses import dataclass, field

from trl_plus.data.converters import CONVERTERS

_CONVERTER = "Converter of rows that have a known shape of their own, see docs/data.md."


@dataclass
class RunOptions:
    """Keys that neither a trainer's configuration nor TRL's script arguments have.

    Raises:
        ValueError: a value is out of its range.
    """

    converter: str | None = field(default=None, metadata={"help": _CONVERTER, "choices": tuple(CONVERTERS)})
    columns: dict | None = field(
        default=None,
        metadata={
            "help": "Names of the data's columns: new name to column, or to a value inside one with dots, as "
            "{prompt: question.text, chosen: a}; null leaves a column out."
        },
    )
    plain_text: bool = field(
        default=False,
        metadata={"help": "Text is meant to be trained on without the turns of the model's chat template."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Held-out rows: a hub id, a local file or folder, or bundled:NAME. Its train split is used."},
    )
    eval_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training rows, at least 0 and below 1, held out (drawn with `seed`) when the data "
            "has no test split. 0 holds out nothing."
        },
    )
    balance: bool = field(
        default=False,
        metadata={
            "help": "Weigh the training rows so that surface features (length, lists, openings) no longer tell the "
            "preferred side, by the column `weight`."
        },
    )
    max_eval_rows: int | None = field(
        default=None,
        metadata={"help": "Evaluate on at most this many held-out rows (drawn with `seed`); 0 turns evaluation off."},
    )
    report_generations: int = field(
        default=3,
        metadata={"help": "Number of held-out prompts answered before and after training; 0 turns it off."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop when `metric_for_best_model` has not improved in this many evaluations; never, if not given."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "`metric_for_best_model` has improved where it is better by more than this."},
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Chat template for a tokenizer that has none: a .jinja file, or the folder or hub id of a model "
            "whose template is taken."
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` must be at least 0 and below 1, got {self.eval_fraction}.")
        if self.max_eval_rows is not None and self.max_eval_rows < 0:
            raise ValueError(f"`max_eval_rows` must not be negative, got {self.max_eval_rows}.")
        if self.report_generations < 0:
            raise ValueError(f"`report_generations` must not be negative, got {self.report_generations}.")
        if self.early_stopping_threshold < 0:
            raise ValueError(f"`early_stopping_threshold` must not be negative, got {self.early_stopping_threshold}.")
        if self.eval_fraction and self.eval_dataset_name is not None:
            raise ValueError("Give `eval_dataset_name` or `eval_fraction`, not both.")


@dataclass
class EntryOptions:
    """Keys of an entry of the list `datasets` that TRL's DatasetConfig does not have."""

    columns: list[str] | dict | None = field(
        default=None, metadata={"help": "Columns to keep, or a mapping of new names to columns."}
    )
    converter: str | None = field(default=None, metadata={"help": _CONVERTER, "choices": tuple(CONVERTERS)})
