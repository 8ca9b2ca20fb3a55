"""The recipe keys that are ours: how a run is evaluated and reported. Everything else is TRL's or transformers'.

A key's bounds and exclusions stand on its field. Recipes, their JSON Schema and Python read them there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trl_plus.data.converters import CONVERTERS

ONE_OF_THEM = "keep one of them"
# Declarations for fields of TRL and transformers, which fail on such values late and in their own words
UPSTREAM: dict[str, dict[str, Any]] = {
    "per_device_train_batch_size": {"at_least": 1},
    "per_device_eval_batch_size": {"at_least": 1},
    "gradient_accumulation_steps": {"at_least": 1},
    "max_length": {"at_least": 2},
    "learning_rate": {"at_least": 0},
    "weight_decay": {"at_least": 0},
    "lora_r": {"at_least": 1},
    "num_train_epochs": {"above": 0},
    "save_steps": {"above": 0},
    "dataset_name": {"excludes": {"datasets": ONE_OF_THEM}},
    "load_in_4bit": {"excludes": {"load_in_8bit": ONE_OF_THEM}},
    "bf16": {"excludes": {"fp16": ONE_OF_THEM}},
    "desirable_weight": {"at_least": 0},
    "undesirable_weight": {"at_least": 0},
}


def is_given(value: Any) -> bool:
    """True if a value asks for something: null, false and an empty list do not, 0 does."""
    return not (value is None or value is False or value == [])


def range_problem(name: str, value: Any, declared: Mapping[str, Any]) -> str | None:
    """One sentence if a number is outside of the bounds `at_least`, `above` and `below` of its key."""
    for words, bound, holds in (
        ("at least", declared.get("at_least"), lambda bound: value >= bound),
        ("above", declared.get("above"), lambda bound: value > bound),
        ("below", declared.get("below"), lambda bound: value < bound),
    ):
        if bound is not None and not holds(bound):
            return f"`{name}` must be {words} {bound}, got {value}."
    return None


def exclusions(values: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(second key, sentence) for each two keys that are given and exclude each other."""
    for first, declaration in declared.items():
        for second, cure in declaration.get("excludes", {}).items():
            if is_given(values.get(first)) and is_given(values.get(second)):
                yield second, f"`{first}` and `{second}` exclude each other: {cure}."


def _key(default: Any, help: str, **declared: Any) -> Any:
    return field(default=default, metadata={"help": help, **declared})


_CONVERTER = "Converter of rows that have a known shape of their own, see docs/data.md."


@dataclass
class RunOptions:
    """Keys that neither a trainer's configuration nor TRL's script arguments have.

    Raises:
        ValueError: a value is out of its range, or two values exclude each other.
    """

    converter: str | None = _key(
        None,
        _CONVERTER,
        choices=tuple(CONVERTERS),
        excludes={"datasets": "give each entry of `datasets` that needs one its `converter`"},
    )
    columns: dict | None = _key(  # noqa: RUF009
        None,
        "Names of the data's columns: new name to column, to a value inside one with dots, as "
        "{prompt: question.text, chosen: a}, or to a difference, as {margin: score_chosen - score_rejected}; null "
        "leaves a column out.",
        excludes={"datasets": "give each entry of `datasets` that needs them its `columns`"},
    )
    plain_text: bool = _key(False, "Text is meant to be trained on without the turns of the model's chat template.")
    eval_dataset_name: str | None = _key(
        None,
        "Held-out rows: a hub id, a local file or folder, or bundled:NAME. Its train split is used.",
        excludes={"eval_fraction": ONE_OF_THEM},
    )
    eval_fraction: float = _key(
        0.0,
        "Share of the training rows, at least 0 and below 1, held out (drawn with `seed`) when the data "
        "has no test split. 0 holds out nothing.",
        at_least=0,
        below=1,
        excludes={"test_split_size": ONE_OF_THEM},
    )
    balance: bool = _key(
        False,
        "Weigh the training rows so that surface features (length, lists, openings) no longer tell the "
        "preferred side, by the column `weight`.",
    )
    max_eval_rows: int | None = _key(
        None,
        "Evaluate on at most this many held-out rows (drawn with `seed`); 0 turns evaluation off.",
        at_least=0,
    )
    split_seed: int | None = _key(
        None,
        "Seed that draws held-out rows and mixes `datasets`; `seed`, if not given. With it runs of other seeds hold "
        "out the same rows.",
        at_least=0,
    )
    report_generations: int = _key(
        3, "Number of held-out prompts answered before and after training; 0 turns it off.", at_least=0
    )
    early_stopping_patience: int | None = _key(
        None,
        "Stop when `metric_for_best_model` has not improved in this many evaluations; never, if not given.",
        at_least=1,
    )
    early_stopping_threshold: float = _key(
        0.0, "`metric_for_best_model` has improved where it is better by more than this.", at_least=0
    )
    chat_template_path: str | None = _key(
        None,
        "Chat template for a tokenizer that has none: a .jinja file, or the folder or hub id of a model "
        "whose template is taken.",
    )

    def __post_init__(self) -> None:
        values, declared = vars(self), {one.name: one.metadata for one in fields(self)}
        given = {name: value or None for name, value in values.items()}  # a fraction of 0 holds out nothing
        found = [range_problem(name, value, declared[name]) for name, value in values.items() if value is not None]
        found += [sentence for _, sentence in exclusions(given, declared)]
        for sentence in filter(None, found):
            raise ValueError(sentence)


@dataclass
class EntryOptions:
    """Keys of an entry of the list `datasets` that TRL's DatasetConfig does not have."""

    columns: list[str] | dict | None = _key(None, "Columns to keep, or a mapping of new names to columns.")  # noqa: RUF009
    converter: str | None = _key(None, _CONVERTER, choices=tuple(CONVERTERS))
