"""Columns that hold a part of the prompt under names that public datasets use, and whether their text is trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

from trl_plus.data.folding import FOLDED, speakers

QUESTIONS = ("question", "instruction", "query", "input", "problem", "user_prompt", "user_input", "question_body")
DIALOGUES = ("messages", "conversations", "conversation", "trajectory", "dialogue", "context", "context_messages",
             "prompt_messages", "contents")  # fmt: skip
PROMPT_PARTS = (*FOLDED, *QUESTIONS, *DIALOGUES, "passage", "document", "documents", "article", "background",
                "initial_reason_steps", "response_prefix", "few_shot", "examples")  # fmt: skip
_TEXT_KEYS = ("content", "value", "text")
_ANSWERING = {"assistant", "gpt", "model"}


def unused(row: Mapping[str, Any], names: Iterable[str], used: Iterable[str]) -> list[str]:
    """The columns among `names` whose text stands in none of the texts that are used. White space is not compared.

    The last answer of a dialogue is no part of the prompt.

    Args:
        used: the prompt and the responses of the row.
    """
    present = [name for name in names if row.get(name)]
    if not present:
        return []
    whole = _squeezed("\n".join(used))
    return [name for name in present if not all(_squeezed(text) in whole for text in texts_in(asked(row[name])))]


def asked(value: Any) -> Any:
    """A dialogue without its last answer; any other value unchanged."""
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, Mapping):
        return value
    if last.get("role", last.get("from")) in _ANSWERING:
        return value[:-1]
    keys = speakers(last)
    return value if keys is None else [*value[:-1], last[keys[0]]]


def texts_in(value: Any) -> list[str]:
    """Every text in a value; of messages and content blocks what they say."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, Mapping):
        said = [value[key] for key in _TEXT_KEYS if key in value]
        return [text for part in said or value.values() for text in texts_in(part)]
    return [text for part in value for text in texts_in(part)] if isinstance(value, (list, tuple)) else []


def _squeezed(text: str) -> str:
    return "".join(text.split())


def beside(row: Mapping[str, Any], sides: Iterable[str]) -> list[str]:
    """Columns with a part of the prompt that stand beside text answers and are not repeated in every one of them."""
    return list(dict.fromkeys(name for side in sides for name in unused(row, PROMPT_PARTS, [row[side]])))
