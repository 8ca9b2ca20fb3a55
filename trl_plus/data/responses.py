"""The last assistant message is the response; everything before it is the prompt.

TRL's tokenization takes `prompt` and one continuation per side. These functions bring conversational rows of any shape
to that form: whole conversations without a prompt, several turns in a completion, prompts split in the middle.
"""

from typing import Any

SIDES = {"paired": ("chosen", "rejected"), "unpaired": ("completion",)}
Message = dict[str, Any]


def sides_of(columns: list[str]) -> tuple[str, ...]:
    return SIDES["paired"] if "chosen" in columns and "rejected" in columns else SIDES["unpaired"]


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def split_response(
    row: dict[str, Any], sides: tuple[str, ...], index: int | None = None, keep_turns: bool = False
) -> dict[str, Any]:
    """`prompt` and one list of messages per side, whose last message is the response.

    Usually each side is that one message. Where the histories of two sides differ, the prompt is what they share and a
    side keeps its own earlier turns in front of the response; `context_tokens` takes those out of the loss again.

    Args:
        keep_turns: the prompt is the row's own, and a side keeps all of its turns. Without one, the prompt of a pair is
            what the sides share, and that of a single completion what comes before its first answer.

    Raises:
        ValueError: a conversation does not end with an assistant message, or the sides answer different prompts.
    """
    where = "" if index is None else f" of row {index}"
    prompt = row.get("prompt") or []
    whole = {side: [*prompt, *(row[side] or [])] for side in sides}
    for side, messages in whole.items():
        if not messages or messages[-1]["role"] != "assistant":
            last = f"ends with a {messages[-1]['role']!r} message" if messages else "is empty"
            raise ValueError(
                f"`{side}`{where} {last}: the last message must be the assistant's response. Remove what follows it."
            )
    if keep_turns and prompt:
        return {"prompt": prompt, **{side: row[side] for side in sides}}
    contexts = [messages[:-1] for messages in whole.values()]
    shared = shared_turns(contexts)
    if not shared:
        raise ValueError(f"The sides{where} have no first turn in common: both must answer the same prompt.")
    if keep_turns and len(sides) == 1:
        shared = next((n for n, turn in enumerate(contexts[0]) if turn["role"] == "assistant"), shared) or shared
    return {"prompt": contexts[0][:shared], **{side: messages[shared:] for side, messages in whole.items()}}


def shared_turns(contexts: list[list[Message]]) -> int:
    """The number of leading messages that all conversations have in common."""
    shared = 0
    for turns in zip(*contexts, strict=False):
        if any(turn != turns[0] and _without_nulls(turn) != _without_nulls(turns[0]) for turn in turns):
            break
        shared += 1
    return shared


def _without_nulls(turn: Message) -> Message:
    """A table fills the keys that only some messages of its column have; two columns may differ in them."""
    return {key: value for key, value in turn.items() if value is not None}


def is_plain(row: dict[str, Any], sides: tuple[str, ...]) -> bool:
    """True if a conversational row has the form of `split_response` already: a prompt and one response per side."""
    return bool(row.get("prompt")) and all(
        len(row[side] or []) == 1 and row[side][0]["role"] == "assistant" for side in sides
    )


def split_batch(
    batch: dict[str, list[Any]], indices: list[int], sides: tuple[str, ...], keep_turns: bool = False
) -> dict[str, list[Any]]:
    """`split_response` over a batch of columns, for `Dataset.map(batched=True, with_indices=True)`."""
    columns = {name: batch[name] for name in ("prompt", *sides) if name in batch}
    out: dict[str, list[Any]] = {name: [] for name in ("prompt", *sides)}
    for position, index in enumerate(indices):
        row = {name: values[position] for name, values in columns.items()}
        row = row if is_plain(row, sides) else split_response(row, sides, index, keep_turns)
        for name in out:
            out[name].append(row[name])
    return out


def unpaired_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Labelled completions of a batch of pairs: first every chosen one, then every rejected one, as TRL orders them."""
    rows = len(batch["chosen"])
    others = {name: values + values for name, values in batch.items() if name not in SIDES["paired"]}
    return {**others, "completion": batch["chosen"] + batch["rejected"], "label": [True] * rows + [False] * rows}
