"""D414, D415: turns, calls and tools of the prompt that are not in what the chat template writes.

A template leaves parts out by the roles and kinds of the turns, not by their words, so a few rows of each structure are
rendered, and all rows of a structure that fails.
"""

import html
import json
import re
from collections import Counter
from typing import Any

import numpy as np

from trl_plus.data.templates import fitted, needs_of, template_arguments
from trl_plus.preflight.registry import ERROR, WARNING, token_check
from trl_plus.preflight.rows import Row, excerpt, message_text
from trl_plus.preflight.tally import Hits
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows

_PROBE = 24  # characters by which a text is found again
_EACH = 2  # rows of a structure that are rendered while nothing is found in them
# templates leave earlier traces out by design
_THINK = re.compile(r"(?:<think(?:ing)?>|\A).*?</think(?:ing)?>", re.DOTALL)


@token_check(
    "D414",
    ERROR,
    "a turn of the prompt is not in what the chat template writes",
    "Use a template that writes it, or put its text into another turn: the model would answer without having read it.",
)
def turn_dropped(tokens: TokenRows, target: Target) -> Hits | None:
    return _hits(tokens, target, _lost_turn)


@token_check(
    "D415",
    WARNING,
    "the chat template leaves out tools or a tool call of the prompt",
    "Use a template that writes them, or remove them from the rows: the model does not see them.",
)
def call_dropped(tokens: TokenRows, target: Target) -> Hits | None:
    return _hits(tokens, target, _lost_call)


def _hits(tokens: TokenRows, target: Target, lost: Any) -> Hits | None:
    if not target.kind.conversational or target.tokenizer is not target.processor:  # a processor writes blocks itself
        return None
    found: dict[int, str] = {}
    seen: Counter[Any] = Counter()
    failing: set[Any] = set()
    for place, row in enumerate(tokens.rows):
        structure = _structure(row)
        if seen[structure] >= _EACH and structure not in failing:
            continue
        seen[structure] += 1
        part = lost(row, _rendered(row, target))
        if part is not None:
            failing.add(structure)
            found[place] = part
    mask = np.zeros(len(tokens.index), bool)
    mask[list(found)] = True
    return Hits(mask, lambda place: found[place])


def _structure(row: Row) -> Any:
    turns = tuple((turn["role"], "tool_calls" in turn, bool(turn.get("content"))) for turn in row.turns)
    return turns, bool(row.raw.get("tools"))


def _rendered(row: Row, target: Target) -> str:
    turns = fitted(row.turns, needs_of(target.processor))
    return str(
        target.processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **target.arguments(row.raw)
        )
    )


def _lost_turn(row: Row, written: str) -> str | None:
    whole = _squeezed(written)
    for number, turn in enumerate(row.turns):
        if number == 0 and turn["role"] in ("system", "developer"):
            continue  # D408
        if not _is_in(_THINK.sub("", message_text(turn)), whole):
            return f"{turn['role']} (message {number}): {excerpt(message_text(turn))}"
    return None


def _lost_call(row: Row, written: str) -> str | None:
    whole = _squeezed(written)
    for number, turn in enumerate(row.turns):
        for call in turn.get("tool_calls") or []:
            function = call.get("function", call) if isinstance(call, dict) else {}
            texts = [function.get("name"), *_leaves(function.get("arguments"))]
            gone = next((text for text in texts if isinstance(text, str) and not _is_in(text, whole)), None)
            if gone is not None:
                return f"the call of {function.get('name')} (message {number}): {excerpt(gone)}"
    for tool in template_arguments(row.raw).get("tools") or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(function.get("name"), str) and not _is_in(function["name"], whole):
            return f"the tool {function['name']}"
    return None


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _leaves(part)]
    if isinstance(value, list):
        return [text for part in value for text in _leaves(part)]
    return [value] if isinstance(value, str) else []


def _is_in(text: str, whole: str) -> bool:
    """True if the beginning of a text is in the squeezed whole, as it is or as JSON or HTML writes it."""
    forms = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text))
    return any(_squeezed(form)[:_PROBE].rstrip("\\") in whole for form in forms)


def _squeezed(text: str) -> str:
    return "".join(text.split())
