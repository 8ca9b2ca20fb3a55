"""The formats of preference data: recognised by their columns and first row, and brought to what TRL tokenizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trl_plus.data.checks import refuse_nulls, refuse_weights
from trl_plus.data.columns import line_of
from trl_plus.data.converters import recognise
from trl_plus.data.numbering import user_columns
from trl_plus.data.responses import is_conversation
from trl_plus.data.suggestions import mapping_for
from trl_plus.data.unused import QUESTIONS, beside
from trl_plus.errors import DataError

EXPECTED = {
    True: "pairs: `chosen` and `rejected`, with or without `prompt`",
    False: "labelled rows: `prompt`, `completion` and `label` (true or false), or pairs: `chosen` and `rejected`",
}
_LABEL_TYPES = "true or false"
_SHAREGPT_NAMES = {"human", "gpt"}
_COLUMNS = ("prompt", "chosen", "rejected", "completion")


@dataclass(frozen=True)
class Format:
    """The form of a dataset's rows.

    Attributes:
        paired: a chosen and a rejected side; False: one completion and its label.
        conversational: sides are lists of {role, content}; False: text.
        prompt: "explicit" (a column of the kind of the sides), "implicit" (no column: what the sides share), or "text"
            (a text column next to conversations, as in UltraFeedback).
    """

    paired: bool
    conversational: bool
    prompt: str

    def __str__(self) -> str:
        kind = "conversational" if self.conversational else "text"
        rows = "pairs" if self.paired else "labelled completions"
        return f"{kind} {rows}, {self.prompt} prompt"


def detect(row: dict[str, Any], name: str, paired_method: bool) -> Format:
    """The format of a dataset, from its first row.

    Args:
        name: the dataset, as messages name it.
        paired_method: whether the method trains on pairs only.

    Raises:
        DataError: columns are missing, rows are of the other kind, or the columns contradict each other.
    """
    paired = "chosen" in row and "rejected" in row
    if not paired and not ("completion" in row and "label" in row):
        raise DataError(
            f"{name} has the columns {', '.join(user_columns(row))}, but {_expectation(row, paired_method)}"
        )
    if not paired and paired_method:
        raise DataError(
            f"{name} has labelled rows (`completion`, `label`), but the method compares pairs: use `method: kto`, or "
            "data with the columns `chosen` and `rejected`."
        )
    sides = ("chosen", "rejected") if paired else ("completion",)
    kinds = {side: _kind(row[side], f"`{side}` of {name}", row, paired_method) for side in sides}
    if len(set(kinds.values())) > 1:
        raise DataError(f"{name}: `chosen` is {kinds['chosen']} but `rejected` is {kinds['rejected']}: use one kind.")
    conversational = kinds[sides[0]] == "a conversation"
    if row.get("prompt") is None:
        if not paired and not conversational:
            raise DataError(f"{name} has no column `prompt`: {_prompt_cure(row, paired_method)}.")
        if not conversational:
            _refuse_question_beside(row, sides, name, paired_method)
        return Format(paired, conversational, "implicit")
    prompt = _kind(row["prompt"], f"`prompt` of {name}", row, paired_method)
    if prompt == "a conversation" and not conversational:
        raise DataError(
            f"{name}: `prompt` is a conversation but `{sides[0]}` is text: set `converter: text`, which makes it a "
            "message of the assistant."
        )
    return Format(paired, conversational, "text" if conversational and prompt == "text" else "explicit")


def _prompt_cure(row: dict[str, Any], paired_method: bool) -> str:
    converter = recognise(row, paired_method)
    if converter is not None:
        return f"set `converter: {converter}`"
    return f"labelled text needs one, {_mapping(row, paired_method)}"


def _refuse_question_beside(row: dict[str, Any], sides: tuple[str, ...], name: str, paired_method: bool) -> None:
    """Refuse answers as text beside their question, of which only the beginning that they share would be the prompt."""
    found = beside(row, sides)
    if not found:
        return
    question = next((column for column in QUESTIONS if column in found), found[0])
    converter = recognise(row, paired_method)
    cure = f"set `converter: {converter}`, or" if converter else "write"
    line = line_of({"prompt": question})
    raise DataError(
        f"{name} has no column `prompt`, and the text of `{question}` would not be trained on: {cure} `{line}` for "
        "text without chat turns."
    )


@contextmanager
def utf8(name: str) -> Iterator[None]:
    """Reading rows inside it says of a file in another encoding what to do.

    Raises:
        DataError: instead of a UnicodeDecodeError.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 (byte {error.start}): convert the file, as iconv does.") from error


def prepare(dataset: Any, name: str, paired_method: bool) -> tuple[Any, Format, list[str]]:
    """A dataset as the trainers take it, its format, and what was done to it, one sentence each.

    Raises:
        DataError: it has no rows, or `detect` or `label` refuses them.
    """
    with utf8(name):
        first = next(iter(dataset), None)
    if first is None:
        raise DataError(f"{name} has no rows: check the file and the split.")
    try:
        refuse_nulls(dataset, [*_COLUMNS, "label"], name)
        refuse_weights(dataset, name)
    except ValueError as error:
        raise DataError(str(error)) from error
    form = detect(first, name, paired_method)
    refuse_names(first, name)
    _refuse_mixed_rows(dataset, first, name, paired_method)
    notes = []
    if form.prompt == "text":
        dataset = conversational_prompt(dataset)
        notes.append(
            f"{name}: the text column `prompt` is replaced by the conversations' own turns before the response."
        )
    if form.paired and not form.conversational and form.prompt == "implicit":
        converter = recognise(first, paired_method)
        hint = f" If that is not meant, set `converter: {converter}`." if converter else ""
        notes.append(
            f"{name} has no column `prompt`: the beginning that chosen and rejected share is the prompt.{hint}"
        )
    if not form.paired:
        dataset, label_notes = _labels(dataset, first["label"], name)
        notes += label_notes
    return dataset, form, notes


def refuse_names(row: dict[str, Any], name: str) -> None:
    """Raises a DataError where messages of a row have roles named as in ShareGPT."""
    for column in _COLUMNS:
        value = row.get(column)
        if not is_conversation(value):
            continue
        names = dict.fromkeys(str(message.get("role")) for message in value if isinstance(message, dict))
        if set(names) & _SHAREGPT_NAMES:
            raise DataError(
                f"`{column}` of {name} has messages of {', '.join(names)}, but roles are system, user, assistant and "
                "tool: set `converter: sharegpt`."
            )


def _expectation(row: dict[str, Any], paired_method: bool) -> str:
    converter = recognise(row, paired_method)
    cure = f"set `converter: {converter}`" if converter else _column_cure(row, paired_method)
    return f"the method needs {EXPECTED[paired_method]}: {cure}."


def _mapping(row: dict[str, Any], paired_method: bool) -> str:
    return f"rename the columns with `{line_of(mapping_for(row, paired_method))}`"


def _column_cure(row: dict[str, Any], paired_method: bool) -> str:
    """The fix for columns that are none of the method's."""
    columns = user_columns(row)
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and mark in columns[0]:
            return f"the file seems to be separated by {word}, separate its values by commas"
    close = {column: column.strip().strip("\ufeff").lower() for column in columns}
    wrong = {name: column for column, name in close.items() if column != name in (*_COLUMNS, "label")}
    if wrong and all(column == column.strip() and column.isascii() for column in wrong.values()):
        return f"write `{line_of(wrong)}`"
    if wrong:
        return "rename " + ", ".join(f"`{column}` to `{name}`" for name, column in wrong.items())
    return _mapping(row, paired_method)


def _kind(value: Any, what: str, row: dict[str, Any], paired_method: bool) -> str:
    if isinstance(value, str):
        return "text"
    if is_conversation(value):
        return "a conversation"
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        raise DataError(
            f"{what} has messages with the keys {', '.join(value[0])}, but they need `role` and `content`: set "
            "`converter: sharegpt`."
        )
    converter = recognise(row, paired_method)
    cure = f"set `converter: {converter}`" if converter else "it must be text or a list of {role, content} messages"
    raise DataError(f"{what} is {value!r} in the first row: {cure}.")


def conversational_prompt(dataset: Any) -> Any:
    """Drop a text prompt where the sides hold the whole conversation; make it the user's turn where they do not."""

    def user_turn(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": row.pop("prompt")}]}

    first = next(iter(dataset))
    side = "chosen" if "chosen" in first else "completion"
    if len(first[side]) > 1:
        return dataset.remove_columns("prompt")
    return dataset.map(lambda row: user_turn(dict(row)), remove_columns="prompt")


def _refuse_mixed_rows(dataset: Any, first: dict[str, Any], name: str, paired_method: bool) -> None:
    """Find the first row that is of another kind than row 0. Only where a column holds several types is there one."""
    if not _mixed(dataset, [column for column in _COLUMNS if column in first]):
        return
    form = detect(first, name, paired_method)
    for index, row in enumerate(dataset):
        other = detect(row, f"row {index} of {name}", paired_method)
        if other != form:
            raise DataError(f"{name}: row 0 is one of {form}, row {index} one of {other}: use one kind.")


def _mixed(dataset: Any, columns: list[str]) -> bool:
    """True if `datasets` found values of several types in one of the columns (it then keeps them as JSON)."""
    features = dataset.features or {}
    return any(type(features.get(column)).__name__ == "Json" for column in columns)


def _labels(dataset: Any, first: Any, name: str) -> tuple[Any, list[str]]:
    """The dataset with boolean labels; 0 and 1 are taken as false and true."""
    if isinstance(first, bool) and not _mixed(dataset, ["label"]):
        return dataset, []
    if not hasattr(dataset, "select"):  # an iterable dataset is read as it comes
        raise DataError(f"{name}: `label` must be {_LABEL_TYPES}, got {first!r} in the first row.")
    values = list({repr(value): value for value in dataset["label"]}.values())
    if all(isinstance(value, int) and value in (0, 1) for value in values):
        return dataset.map(lambda row: {"label": bool(row["label"])}), [f"{name}: labels 1 and 0 are true and false."]
    shown = ", ".join(repr(value) for value in values[:5])
    raise DataError(f"{name}: `label` must be {_LABEL_TYPES} (or 1 and 0), got {shown}: convert the column.")
