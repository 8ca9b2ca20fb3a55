"""D1xx: rows that no trainer can tokenize. What is found here is skipped by every other check."""

import re
from typing import Any

from trl_plus.data.checks import is_weight
from trl_plus.data.responses import shared_turns
from trl_plus.preflight.registry import ERROR, conversation_check, shape_check
from trl_plus.preflight.rows import ROLES, Kind, excerpt

Raw = dict[str, Any]
# how a list of messages begins that json.dumps or str wrote
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
Conversations = dict[str, list[Any]]


def _columns(kind: Kind) -> tuple[str, ...]:
    return ("prompt", *kind.sides) if kind.prompt else kind.sides


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str | list) or bool(content is None and value.get("tool_calls"))


def _well_formed(value: Any, conversational: bool) -> bool:
    if not conversational:
        return isinstance(value, str)
    return isinstance(value, list) and all(map(_is_message, value))


@shape_check("D102", ERROR, "a value is missing (null)", "Fill the values in, or remove these rows.")
def null_value(row: Raw, kind: Kind) -> str | None:
    names = [name for name in _columns(kind) if row.get(name) is None]
    if not kind.prompt and row.get("prompt", "") is None:
        names.append("prompt")  # the column is there, so the trainer does not look for the prompt in the sides
    if not kind.paired and row.get("label") is None:
        names.append("label")
    return f"{', '.join(names)} null" if names else None


@shape_check(
    "D103",
    ERROR,
    "a value is of another kind than in the other rows, or its messages have no role and content",
    "Bring every row into one form: text everywhere, or lists of {role, content} messages everywhere.",
)
def malformed_value(row: Raw, kind: Kind) -> str | None:
    for name in _columns(kind):
        conversational = kind.conversational and not (name == "prompt" and kind.text_prompt)
        if row.get(name) is not None and not _well_formed(row[name], conversational):
            return f"{name}: {excerpt(repr(row[name]))}"
    if not kind.prompt and row.get("prompt") is not None:
        return f"prompt: {excerpt(repr(row['prompt']))}, where other rows have none"
    return None


@shape_check("D104", ERROR, "a side holds nothing at all", "Remove these rows, or write the missing response.")
def nothing_there(row: Raw, kind: Kind) -> str | None:
    if kind.conversational or not kind.prompt:
        names = [side for side in kind.sides if row.get(side) in ("", [])]
        return f"{', '.join(names)} empty" if names else None
    return None


@shape_check(
    "D105",
    ERROR,
    "the label is not true or false",
    "Make `label` a boolean: true for completions that are wanted, false for the others (1 and 0 work, -1 does not).",
)
def label_type(row: Raw, kind: Kind) -> str | None:
    value = row.get("label")
    if kind.paired or value is None or (isinstance(value, bool | int) and value in (0, 1)):
        return None
    return f"label {value!r}"


@shape_check(
    "D109",
    ERROR,
    "a list of messages stands there as text",
    "Keep messages as lists, in JSON Lines or Parquet: a table such as CSV has turned them into text.",
)
def messages_as_text(row: Raw, kind: Kind) -> str | None:
    for name in _columns(kind):
        value = row.get(name)
        if isinstance(value, str) and _MESSAGES.match(value):
            return f"{name}: {excerpt(value)}"
    return None


@shape_check(
    "D106", ERROR, "the weight is not a finite number of at least 0", "Mend the `weight` of these rows, or remove them."
)
def weight_value(row: Raw, kind: Kind) -> str | None:
    if "weight" not in row or is_weight(row["weight"]):
        return None
    return f"weight {row['weight']!r}"


def conversations(row: Raw, kind: Kind) -> dict[str, list[Any]]:
    """Each side of a well-formed row with its prompt, as one conversation."""
    prompt = row.get("prompt") or []
    if kind.text_prompt:
        prompt = [] if kind.whole else [{"role": "user", "content": row["prompt"]}]
    return {side: [*prompt, *row[side]] for side in kind.sides}


@conversation_check(
    "D107",
    ERROR,
    "a conversation does not end with the assistant's message",
    "Remove what follows the last assistant message: it is the response that is trained on.",
)
def last_turn(whole: Conversations) -> str | None:
    ends = {side: turns[-1]["role"] for side, turns in whole.items()}
    wrong = {side: role for side, role in ends.items() if role != "assistant" and role in ROLES}
    return ", ".join(f"{side} ends with {role!r}" for side, role in wrong.items()) or None


@conversation_check(
    "D207",
    ERROR,
    "a message has a role that chat templates do not know",
    "Rename the roles to system, user, assistant and tool (`converter: sharegpt` does it for human and gpt).",
)
def unknown_role(whole: Conversations) -> str | None:
    for turns in whole.values():
        for number, turn in enumerate(turns):
            if turn["role"] not in ROLES:
                return f"role {turn['role']!r} (message {number})"
    return None


@conversation_check(
    "D108",
    ERROR,
    "there is no prompt: the sides have no first turn in common",
    "Give both sides the same prompt: a pair compares two answers to one question.",
)
def common_prompt(whole: Conversations) -> str | None:
    contexts = [turns[:-1] for turns in whole.values()]
    if shared_turns(contexts):
        return None
    return " / ".join(excerpt(str(turns[0].get("content"))) if turns else "nothing" for turns in contexts)
