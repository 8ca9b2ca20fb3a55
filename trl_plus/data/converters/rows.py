"""The base of the converters: the fields of a row, messages, and the rows that come out. Imports no data library."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_plus.data.messages import listed
from trl_plus.data.responses import SIDES, Message, is_conversation, split_response

Row = dict[str, Any]
COLUMNS = "_columns"  # in the fields of a shape that is `named`: the column of each field


class Unconvertible(ValueError):
    """This row cannot become a training row, though its columns have the right types. The text says why."""


class WrongShape(ValueError):
    """A value is of another type than the converter takes, so that it is not meant for this dataset."""


@dataclass(frozen=True)
class Shape:
    """One form of rows that a converter takes.

    Attributes:
        needs: the fields, each a tuple of the column names it may have. The first name is the field's.
        also: fields that may be missing, in the same way.
        convert: (fields by name, whether the method takes pairs only) -> rows. A field whose column is missing is
            missing there too. Every row has the same columns.
        many: whether a row may become several.
        labelled: whether labelled rows come out for every method.
        in_form: whether a row, given as fields, needs no conversion; such rows are converted beside others that do.
        named: whether `convert` also gets the columns of the fields, under COLUMNS.
        gather: (fields by name, the values of all rows) -> (row that it comes from, new row, or why it gives none), for
            rows that are made of several.
        holds: (field, type), if only rows with such a value, or null, are meant.
        refuse: (field, its values in many rows -> why they cannot be used together, or None), for what no row shows.
    """

    needs: tuple[tuple[str, ...], ...]
    convert: Callable[[Row, bool], list[Row]]
    also: tuple[tuple[str, ...], ...] = ()
    many: bool = False
    labelled: bool = False
    in_form: Callable[[Row], bool] | None = None
    named: bool = False
    gather: Callable[[Mapping[str, list[Any]]], Iterable[tuple[int, Row | str]]] | None = None
    holds: tuple[str, type] | None = None
    refuse: tuple[str, Callable[[Iterable[Any]], str | None]] | None = None

    def columns(self, available: Sequence[str]) -> dict[str, str] | None:
        """The column of each field, or None where one that is needed is missing."""
        found = {names[0]: next((name for name in names if name in available), None) for names in self.needs}
        if None in found.values():
            return None
        for names in self.also:  # a column that is needed for one field is not taken for another
            found[names[0]] = next((name for name in names if name in available and name not in found.values()), None)
        return {field: column for field, column in found.items() if column is not None}


def text(fields: Row, name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise Unconvertible(f"`{name}` is null")
    if not isinstance(value, str):
        kind = "a list of messages" if is_conversation(value) else f"{value!r:.60}"
        raise WrongShape(f"`{name}` must be text, but is {kind}")
    return value


def optional_text(fields: Row, name: str) -> str:
    """The text of a field; "" where it is missing, null or blank."""
    value = fields.get(name)
    return "" if value is None or not text(fields, name).strip() else str(value)


def messages(value: Any, name: str) -> list[Message]:
    """A list of {role, content} messages, or JSON text of one. A message with calls needs no content.

    Args:
        name: the value, as messages name it.
    """
    value = listed(value)
    _require_list(value, name)
    _require_keys(value, name, "role", "content")
    for index, message in enumerate(value):
        if message.get("role") is None:
            raise Unconvertible(f"message {index} of `{name}` has no role")
        if message.get("content") is None and not any(map(message.get, _CALLS)):
            raise Unconvertible(f"message {index} of `{name}` has no content")
    return list(value)


_CALLS = ("tool_calls", "function_call")
# `function_call` is the assistant's turn, its call kept as text; `observation` is what the tool answered
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "function_call"), "assistant"),
    **dict.fromkeys(("model", "chatgpt", "bot", "chatbot", "ai", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "tool_response", "function_response"), "tool"),
    "system": "system",
}
_ROLE_KEYS = ("role", "from", "sender", "speaker", "author")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts")


def message_keys(message: Iterable[str]) -> tuple[str, str] | None:
    """The keys of a mapping that hold who speaks and what is said; None if it is not a message."""
    role = next((key for key in _ROLE_KEYS if key in message), None)
    content = next((key for key in _CONTENT_KEYS if key in message), None)
    return None if role is None or content is None else (role, content)


def role_of(message: Message) -> str:
    """The role of a {role, content} message under the names of chat templates."""
    return ROLES.get(str(message["role"]).lower(), message["role"])


def in_form(fields: Row, names: Sequence[str]) -> bool:
    """True if fields that must hold {role, content} messages do, under the names of chat templates."""
    sides = [fields[name] for name in names]
    return all(is_conversation(side) for side in sides) and all(
        isinstance(message, dict) and message.get("role") in (None, role_of({"role": None, **message}))
        for side in sides
        for message in side
    )


def from_value(value: Any, name: str) -> list[Message]:
    """A list of {from, value} messages, or one of them, as {role, content} messages. Other keys stay.

    Messages that have the keys role and content already get their names of roles; a name that is not in ROLES stays.
    """
    value = [value] if isinstance(value, dict) else listed(value)
    _require_list(value, name)
    if is_conversation(value):
        return [{**message, "role": role_of(message)} for message in messages(value, name)]
    _require_keys(value, name, "from", "value")
    done = []
    for index, message in enumerate(value):
        role = ROLES.get(str(message["from"]).lower())
        if role is None:
            known = ", ".join(ROLES)
            raise Unconvertible(f"message {index} of `{name}` is from {message['from']!r}, which is none of {known}")
        if message["value"] is None:
            raise Unconvertible(f"message {index} of `{name}` has no value")
        others = {key: part for key, part in message.items() if key not in ("from", "value")}
        done.append({"role": role, "content": message["value"], **others})
    return done


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def with_system(fields: Row, turns: list[Message]) -> list[Message]:
    """The text column `system` in front, where the conversation does not bring its own."""
    system = optional_text(fields, "system")
    own = turns and turns[0]["role"] == "system"
    return turns if own or not system else [{"role": "system", "content": system}, *turns]


def pair(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], names: Sequence[str] = SIDES["paired"]
) -> Row:
    """A pair whose prompt ends before the last assistant message.

    Args:
        names: the fields that the sides come from, as messages name them.
    """
    return _split({"prompt": prompt, "chosen": chosen, "rejected": rejected}, SIDES["paired"], names)


def labelled(
    prompt: list[Message], completion: list[Message], label: Any, name: str = "label", source: str = "completion"
) -> Row:
    """A labelled row whose prompt ends before the last assistant message.

    Args:
        name, source: the fields that the label and the completion come from, as messages name them.
    """
    if label is None:
        raise Unconvertible(f"`{name}` is null")
    if label not in (0, 1) or isinstance(label, float):
        raise WrongShape(f"`{name}` must be true or false, but is {label!r}")
    row = _split({"prompt": prompt, "completion": completion}, SIDES["unpaired"], [source])
    return {**row, "label": bool(label)}


def scores_of(values: Any, name: str) -> list[float | None]:
    """A list of numbers; null and NaN are None."""
    _require_list(values, name)
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise WrongShape(f"`{name}` must hold numbers, but holds {value!r:.60}")
    return [None if value is None or math.isnan(value) else float(value) for value in values]


def best_and_worst(scores: Sequence[float | None]) -> tuple[int, int]:
    """Indices of the highest and the lowest score, the first of equal ones; None is passed over."""
    found = [index for index, score in enumerate(scores) if score is not None]
    if len(found) < 2:
        raise Unconvertible("fewer than two completions have a score")
    best = max(found, key=lambda index: scores[index] or 0.0)
    worst = min(found, key=lambda index: scores[index] or 0.0)
    if scores[best] == scores[worst]:
        raise Unconvertible(f"all completions have the same score, {scores[best]:g}")
    return best, worst


def _require_list(value: Any, name: str) -> None:
    if value is None:
        raise Unconvertible(f"`{name}` is null")
    if not isinstance(value, list):
        raise WrongShape(f"`{name}` must be a list, but is {value!r:.60}")
    if not value:
        raise Unconvertible(f"`{name}` is empty")


def _require_keys(value: list[Any], name: str, *keys: str) -> None:
    for message in value:
        missing = [key for key in keys if key not in message] if isinstance(message, dict) else list(keys)
        if missing and not (missing == ["content"] and any(map(message.get, _CALLS))):
            raise WrongShape(f"`{name}` must be a list of {{{', '.join(keys)}}} messages, but holds {message!r:.60}")


def _split(row: Mapping[str, Any], sides: Sequence[str], names: Sequence[str]) -> Row:
    try:
        return split_response(dict(row), tuple(sides))
    except ValueError as error:
        said = str(error).split(": ")[0].rstrip(".")
        raise Unconvertible(renamed(said, dict(zip(sides, names, strict=True)))) from error


def renamed(said: str, names: Mapping[str, str]) -> str:
    """A message with other names of columns."""
    return re.sub(r"`(\w+)", lambda found: f"`{names.get(found[1], found[1])}", said)
