"""The forms that a chat template takes: content as text or blocks, arguments as mappings or JSON text."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trl_plus.data.responses import Message
from trl_plus.upstream.tokens import tokenize

_PROBE = "alphabetagamma"
_CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"x": _PROBE}}}


@dataclass(frozen=True)
class Needs:
    """Forms that a template takes instead of the usual ones.

    Attributes:
        blocks: content as a list of text blocks; a text would vanish or be refused.
        text_arguments: arguments of tool calls as JSON text; a mapping would be refused.
    """

    blocks: bool = False
    text_arguments: bool = False

    def __bool__(self) -> bool:
        return self.blocks or self.text_arguments


def needs_of(processing_class: Any) -> Needs:
    """The forms that the chat template of a tokenizer takes. A processor gets its blocks from TRL."""
    template = getattr(processing_class, "chat_template", None)
    if not isinstance(template, str):
        return Needs()
    is_processor = hasattr(processing_class, "tokenizer")
    return _asked(template, _Renderer(processing_class), is_processor)


class _Renderer:
    """Renders with a tokenizer; equal to every other one, so that a template is asked once."""

    def __init__(self, processing_class: Any):
        self.processing_class = processing_class

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Renderer)

    def __hash__(self) -> int:
        return 0

    def holds(self, messages: list[Message]) -> bool:
        """True if the rendered messages hold the probe; False if they are refused."""
        try:
            return _PROBE in str(self.processing_class.apply_chat_template(messages, tokenize=False))
        except Exception:  # a template may raise anything
            return False


@lru_cache(maxsize=64)
def _asked(template: str, render: _Renderer, is_processor: bool) -> Needs:
    asked = {"role": "user", "content": _PROBE}
    blocks = not is_processor and not render.holds([asked]) and render.holds([_with_blocks(asked)])
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
    text = not render.holds(turns) and render.holds([_with_text_arguments(turn) for turn in turns])
    return Needs(blocks, text)


def fitted(messages: list[Message], needs: Needs) -> list[Message]:
    """Messages in form as the template takes them."""
    if needs.blocks:
        messages = [_with_blocks(message) for message in messages]
    return [_with_text_arguments(message) for message in messages] if needs.text_arguments else messages


def _with_blocks(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _with_text_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_as_text(call) for call in calls]} if isinstance(calls, list) else message


def _as_text(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _as_text(call["function"])}
    given = call.get("arguments")
    return {**call, "arguments": json.dumps(given, ensure_ascii=False)} if isinstance(given, (dict, list)) else call


def tokenize_messages(processing_class: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    """Token ids of a conversation, by the very function that TRL tokenizes rows with."""
    return tokenize(processing_class, fitted(messages, needs_of(processing_class)), **kwargs)


_TAKEN = ("tools", "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message",
          "tokenize", "return_dict", "return_tensors", "padding", "truncation", "max_length")  # fmt: skip


def refuse_arguments(values: Any) -> None:
    """Raises a ValueError for `chat_template_kwargs` of a run that are not a chat template's."""
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise ValueError(
            f"`chat_template_kwargs` must be a mapping, as {{enable_thinking: false}}, got {values!r:.60}."
        )
    taken = [name for name in values if name in _TAKEN]
    if taken:
        instead = "a column `tools`" if taken[0] == "tools" else "the other keys of the recipe"
        raise ValueError(f"`chat_template_kwargs` must not hold `{taken[0]}`: it is set by {instead}. Fix: remove it.")


def unread_arguments(processing_class: Any, values: Mapping[str, Any] | None) -> list[str]:
    """The names in `chat_template_kwargs` that the chat template does not read."""
    template = getattr(processing_class, "chat_template", None)
    if not values or not isinstance(template, str):
        return []
    return [name for name in values if not re.search(rf"\b{re.escape(name)}\b", template)]


def with_arguments(row: Mapping[str, Any], values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The row with the `chat_template_kwargs` of a run; its own win."""
    if not values:
        return dict(row)
    return {**row, "chat_template_kwargs": {**values, **(row.get("chat_template_kwargs") or {})}}


def template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a chat template beside the messages of a row: `tools` and `chat_template_kwargs`."""
    tools = row.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }
