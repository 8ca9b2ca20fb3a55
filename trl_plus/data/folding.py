"""Columns that stand for turns before the prompt: a system message, and earlier exchanges."""

from collections.abc import Mapping
from typing import Any

from trl_plus.data.responses import Message, is_conversation, split_response

SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history",)
FOLDED = (*SYSTEM, *HISTORY)
_SPEAKERS = (("user", "assistant"), ("human", "assistant"), ("question", "answer"), ("query", "response"),
             ("input", "output"), ("instruction", "output"), ("prompt", "response"))  # fmt: skip


def fold(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its columns `system` and `history` in front of its messages, which then begin with them.

    Rows of text, and values that cannot be read as turns, are left as they are. A conversation that has a system
    message keeps its own, and turns that it begins with already are not repeated.
    """
    sides = [side for side in ("chosen", "rejected", "completion") if is_conversation(row.get(side))]
    if not sides:
        return row
    columns = [name for name in FOLDED if name in row]
    if not columns:
        return row
    new = {name: value for name, value in row.items() if name not in columns}
    turns: list[Message] = []
    for name in columns:
        found = turns_of(name, row[name])
        if found is None:
            new[name] = row[name]
        else:
            turns += found
    return _in_front(new, sides, turns) if turns else new


def turns_of(column: str, value: Any) -> list[Message] | None:
    """The turns that a value of a column stands for; None if it cannot be read as turns."""
    if column in HISTORY:
        return history_turns(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return [{"role": "system", "content": value}] if isinstance(value, str) else None


def history_turns(value: Any, open_end: bool = False) -> list[Message] | None:
    """Earlier exchanges, [question, answer] or {user, assistant}, or messages, as messages; None for other values.

    Args:
        open_end: the answer of the last exchange may be null.
    """
    if value is None or value == []:
        return []
    if not isinstance(value, list):
        return None
    if is_conversation(value) and all(isinstance(message, dict) and "role" in message for message in value):
        return [{key: part for key, part in message.items() if part is not None} for message in value]
    turns: list[Message] = []
    for number, exchange in enumerate(value, start=1):
        if isinstance(exchange, dict):
            keys = speakers(exchange)
            exchange = [exchange[key] for key in keys] if keys else None
        if open_end and number == len(value) and exchange and exchange[1:] == [None] and isinstance(exchange[0], str):
            return [*turns, {"role": "user", "content": exchange[0]}]
        if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(part, str) for part in exchange):
            return None
        turns += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
    return turns


def speakers(exchange: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of an exchange that hold what the user says and what the assistant answers; None of other mappings."""
    if "role" in exchange:
        return None
    return next((keys for keys in _SPEAKERS if set(keys) <= set(exchange)), None)


def _in_front(row: dict[str, Any], sides: list[str], turns: list[Message]) -> dict[str, Any]:
    """The row with turns in front of the prompt, or of each side if it holds the prompt."""
    prompt = row.get("prompt")
    whole = any(len(row[side]) > 1 for side in sides)
    if is_conversation(prompt):
        return {**row, "prompt": _joined(turns, prompt)}
    if isinstance(prompt, str) and not whole:
        return {**row, "prompt": _joined(turns, [{"role": "user", "content": prompt}])}
    joined = {side: _joined(turns, row[side]) for side in sides}
    if not isinstance(prompt, str):
        return {**row, **joined}
    try:  # a text prompt beside whole conversations repeats their turns
        return {**row, **split_response(joined, tuple(sides))}
    except ValueError:
        return {**row, "prompt": [{"role": "user", "content": prompt}]}


def _joined(turns: list[Message], conversation: list[Message]) -> list[Message]:
    own = conversation[0]["role"] in ("system", "developer")
    if own:
        turns = [turn for turn in turns if turn["role"] != "system"]
    rest = conversation[1:] if own else conversation
    spoken = [turn for turn in turns if turn["role"] != "system"]
    if spoken and _same(rest[: len(spoken)], spoken):
        turns = [turn for turn in turns if turn["role"] == "system"]
    return [*conversation[:1], *turns, *rest] if own else [*turns, *conversation]


def _same(a: list[Message], b: list[Message]) -> bool:
    return [(turn["role"], turn.get("content")) for turn in a] == [(turn["role"], turn.get("content")) for turn in b]
