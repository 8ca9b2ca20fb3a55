"""Rows that would be trained on in another form than they are meant: what every trainer and command refuses alike."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from trl_plus.data.messages import looks_listed, message_fault, parsed
from trl_plus.data.responses import is_conversation, sides_of
from trl_plus.data.unused import PROMPT_PARTS, texts_in, unused

LOOK = 200  # rows of a table, spread over it
_OBJECT = re.compile(r"""\s*\{\s*['"](role|content|from|value|messages|conversations?|tools|system)['"]\s*:""")
_MEANT = "If it is not part of it, leave the column out: `dataset.remove_columns({names!r})`, in a recipe `{line}`"


def written_messages(value: Any) -> bool:
    """True if text is a list of messages, or an object that holds them, as json.dumps or str writes it. Other objects
    may be what the model has to answer."""
    if not isinstance(value, str):
        return False
    if looks_listed(value):
        return True
    if not _OBJECT.match(value):
        return False
    held = parsed(value)
    if not isinstance(held, dict):
        return bool(re.search(r"""['"](role|from)['"]\s*:""", value))
    inner = next((held[key] for key in ("messages", "conversations", "conversation") if key in held), None)
    alone = {"role", "content"} <= set(held) or {"from", "value"} <= set(held)
    return alone or (isinstance(inner, list) and all(isinstance(message, dict) for message in inner))


def written_turns(row: Mapping[str, Any], names: Iterable[str]) -> bool:
    """True if every one of the columns holds a JSON list of texts, one per turn, as text."""
    values = [row.get(name) for name in names]
    held = [parsed(value) for value in values if isinstance(value, str) and value.lstrip().startswith("[")]
    known = [value for value in held if isinstance(value, list) and value and all(isinstance(t, str) for t in value)]
    return len(known) == len(values) > 1


def repeats_prompt(row: Mapping[str, Any], sides: Iterable[str]) -> bool:
    """True if every side of a conversational row begins with the messages of `prompt` again."""
    prompt = row.get("prompt")
    if not is_conversation(prompt):
        return False
    asked = _without_system(prompt)
    for side in sides:
        spoken = _without_system(row[side])
        if not asked or len(spoken) <= len(asked) or spoken[: len(asked)] != asked:
            return False
    return True


def _without_system(turns: list[Any]) -> list[Any]:
    return [turn for turn in turns if not isinstance(turn, Mapping) or turn.get("role") != "system"]


def tools_fault(tools: Any) -> bool:
    """True if `tools` is no list of mappings and no JSON text of one, which the trainers read."""
    tools = parsed(tools)
    return tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))


_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within this context `refuse_rows` refuses nothing: a run that leaves preflight out takes the rows as they are."""
    before = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(before)


def is_unchecked() -> bool:
    """True within `unchecked`."""
    return _unchecked.get()


def refuse_rows(dataset: Any, name: str) -> None:
    """Raises a ValueError that names the first of some rows whose prompt, or a part of it, would not be read.

    Rows of a table are taken evenly, of a stream the first one.
    """
    for index, row in () if _unchecked.get() else _some(dataset):
        fault = row_fault(row)
        if fault is not None:
            raise ValueError(f"Row {index} of the {name} dataset: {fault}")


def row_fault(row: Mapping[str, Any]) -> str | None:
    """The part of a row in form that would be lost or trained on wrongly, and the fix; None if nothing."""
    sides = sides_of(list(row))
    columns = [column for column in ("prompt", *sides) if column in row]
    text = next((column for column in columns if written_messages(row[column])), None)
    if text is None and "prompt" in columns and written_turns(row, columns):
        text = "prompt"
    if text is not None:
        return (
            f"`{text}` holds messages as JSON text. Fix: make it a list of {{role, content}} messages, as `json.loads` "
            "does."
        )
    faults = (message_fault(row[column], column) for column in columns if is_conversation(row[column]))
    fault = next((fault for fault in faults if fault is not None), None)
    if fault is not None:
        return f"{fault}. Fix: write its text, or remove the row."
    if tools_fault(row.get("tools")):
        return f"`tools` is {row['tools']!r:.60}. Fix: make it a list of JSON schemas, or JSON text of one."
    if all(is_conversation(row.get(side)) for side in sides) and repeats_prompt(row, sides):
        return (
            "the sides begin with the messages of `prompt` again, so the question would be asked twice. Fix: leave "
            f"`prompt` out: `dataset.remove_columns({['prompt']!r})`, in a recipe `columns: {{prompt: null}}`."
        )
    if not any(column in row for column in PROMPT_PARTS):
        return None
    gone = unused(row, PROMPT_PARTS, [text for column in columns for text in texts_in(row[column])])
    if not gone:
        return None
    listed = ", ".join(f"`{column}`" for column in gone)
    line = "columns: {" + ", ".join(f"{column}: null" for column in gone) + "}"
    return (
        f"the text of {listed} belongs to the prompt and would not be trained on. Fix: write it into `prompt`; "
        f"`converter: text` of a recipe does so. {_MEANT.format(names=gone, line=line)}."
    )


def _some(dataset: Any) -> Iterable[tuple[int, Mapping[str, Any]]]:
    if not hasattr(dataset, "__len__"):
        first = next(iter(dataset), None)
        return [] if first is None else [(0, first)]
    places = np.unique(np.linspace(0, len(dataset) - 1, min(LOOK, len(dataset))).round().astype(int)).tolist()
    relevant = ("prompt", "chosen", "rejected", "completion", "tools", *PROMPT_PARTS)
    rows = dataset.select_columns([column for column in dataset.column_names if column in relevant]).with_format(None)
    return zip(places, rows.select(places), strict=True)
