"""D1xx: rows that no trainer can tokenize. What is found here is skipped by every other check."""

from typing import Any

from trl_plus.data.checks import is_weight
from trl_plus.data.messages import message_fault
from trl_plus.data.refusals import tools_fault, written_messages, written_turns
from trl_plus.data.responses import shared_turns
from trl_plus.preflight.registry import ERROR, conversation_check, shape_check
from trl_plus.preflight.rows import ROLES, Kind, excerpt

Raw = dict[str, Any]
Conversations = dict[str, list[Any]]


def _columns(kind: Kind) -> tuple[str, ...]:
    return ("prompt", *kind.sides) if kind.prompt else kind.sides


def _malformed(value: Any, name: str, conversational: bool) -> str | None:
    if isinstance(value, list if conversational else str):
        return message_fault(value, name) if conversational else None
    return f"{name}: {excerpt(repr(value))}"


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
        fault = None if row.get(name) is None else _malformed(row[name], name, conversational)
        if fault is not None:
            return fault
    if not kind.prompt and row.get("prompt") is not None:
        return f"prompt: {excerpt(repr(row['prompt']))}, where other rows have none"
    return f"tools: {excerpt(repr(row['tools']))}" if tools_fault(row.get("tools")) else None


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
    "Make `label` a boolean: true for completions that are wanted, false for the others (1 and 0 work). "
    "`converter: text` reads words (desirable, rejected, yes, ...) and -1.",
)
def label_type(row: Raw, kind: Kind) -> str | None:
    value = row.get("label")
    if kind.paired or value is None or (isinstance(value, bool | int) and value in (0, 1)):
        return None
    return f"label {value!r}"


@shape_check(
    "D109",
    ERROR,
    "messages stand there as JSON text",
    "Keep messages as lists, in JSON Lines or Parquet: a table such as CSV has turned them into text.",
)
def messages_as_text(row: Raw, kind: Kind) -> str | None:
    columns = _columns(kind)
    name = next((name for name in columns if written_messages(row.get(name))), None)
    if name is None and kind.prompt and written_turns(row, columns):
        name = columns[0]
    return None if name is None else f"{name}: {excerpt(row[name])}"


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
    "Rename the roles to system, user, assistant and tool (`converter: sharegpt` does it for human, gpt, model, bot "
    "and capital letters).",
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
