"""One form of messages and tools, whatever file they came from: what every chat template is given.

Content blocks of text become text, JSON text of tool calls becomes what it stands for, and keys that a table has filled
with null are removed. A value that has no such form stays as it is; `message_fault` names it.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from trl_plus.data.calls import flat_tool, with_calls
from trl_plus.data.responses import Message, is_conversation

_TEXT_BLOCKS = {None: "text", "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_TRACES = {"thinking": "thinking", "reasoning": "text"}
MEDIA = {"image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio", "file"}


THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")


def message_text(message: Message) -> str:
    """The text of a message; of a list of content blocks, its text blocks."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(block.get("text") or "") if isinstance(block, dict) else str(block) for block in content)
    return ""


def spoken(message: Message) -> str:
    """The content of a message: its text, and its tool calls. Two messages say the same if this is the same."""
    calls = message.get("tool_calls")
    return f"{message_text(message)}\n{calls}" if calls else message_text(message)


def said(message: Message) -> str:
    """The content of a message, with a thinking trace that it has under a key of its own between marks."""
    thought = next((message[key] for key in THINKING_KEYS if isinstance(message.get(key), str)), "")
    return f"<think>{thought}</think>{spoken(message)}" if thought else spoken(message)


def bare(value: Any, feature: Any = None) -> Any:
    """The value without the nulls with which a table fills mappings: each row gets the keys of all others.

    Args:
        feature: the type of the column, in which JSON holds what was written; None if it is not known.
    """
    if type(feature).__name__ == "Json":
        return value
    if isinstance(value, dict):
        kinds = feature if isinstance(feature, Mapping) else {}
        return {key: bare(part, kinds.get(key)) for key, part in value.items() if part is not None}
    inner = getattr(feature, "feature", None)
    return [bare(part, inner) for part in value] if isinstance(value, list) else value


def parsed(text: Any) -> Any:
    """The value that JSON text stands for; anything else unchanged."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


_LISTED = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def looks_listed(value: Any) -> bool:
    """True if text begins as a list of messages that json.dumps or str wrote."""
    return isinstance(value, str) and bool(_LISTED.match(value))


def listed(value: Any) -> Any:
    """The list of messages that JSON (or Python) text stands for; any other value unchanged."""
    if not looks_listed(value):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return found if isinstance(found, list) and all(isinstance(message, dict) for message in found) else value


def messages_in_form(value: Any, blocks: bool = False) -> Any:
    """A list of messages in the one form; any other value unchanged.

    Args:
        blocks: keep content blocks, for rows with images.
    """
    if not is_conversation(value):
        return value
    return [_message(message, blocks) if isinstance(message, dict) else message for message in with_calls(value)]


def _message(message: Message, blocks: bool) -> Message:
    new = {key: part for key, part in message.items() if part is not None}
    _texts(new, blocks)
    call = new.get("function_call")
    if isinstance(call, dict) and "tool_calls" not in new:  # OpenAI's name before there were several
        new["tool_calls"] = [{"type": "function", "function": new.pop("function_call")}]
    calls = parsed(new.get("tool_calls"))
    if isinstance(calls, list):
        new["tool_calls"] = [_call(call) for call in calls]
    if not new.get("tool_calls", True):
        del new["tool_calls"]  # templates ask whether the key is there
    if "content" not in new:
        if isinstance(new.get("refusal"), str):
            new["content"] = new.pop("refusal")
        elif new.get("tool_calls"):
            new["content"] = ""
    return new


def _texts(message: Message, blocks: bool) -> None:
    """Text blocks become the text of the message, thinking blocks its trace. Blocks of other kinds stay."""
    content = message.get("content")
    if not isinstance(content, list):
        return
    content = [bare(block) for block in content]
    if blocks or not all(isinstance(block, str) or _text_key(block) for block in content):
        message["content"] = content
        return
    texts, traces = [], []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in _TRACES:
            traces.append(block[_text_key(block)])
        else:
            texts.append(block[_text_key(block)])
    message["content"] = "\n".join(texts)
    if traces:
        message.setdefault("reasoning_content", "\n".join(traces))


def _text_key(block: Any) -> str | None:
    """The key that holds the text of a text or thinking block; None for other blocks."""
    key = {**_TEXT_BLOCKS, **_TRACES}.get(block.get("type")) if isinstance(block, dict) else None
    return key if key is not None and isinstance(block.get(key), str) else None


def _call(call: Any) -> Any:
    """A tool call whose arguments are a mapping."""
    call = parsed(call)
    if not isinstance(call, dict):
        return call
    new = {key: part for key, part in call.items() if part is not None}
    if isinstance(new.get("function"), dict):
        new["function"] = _call(new["function"])
    elif "function" not in new and isinstance(new.get("name"), str):
        new.setdefault("arguments", {})  # templates write them unasked
    given = new.get("arguments")
    if isinstance(given, str):
        value = parsed(given) if given.strip() else {}
        new["arguments"] = value if isinstance(value, dict) else given
    return new


def tools_in_form(value: Any) -> Any:
    """Tools as JSON text, which no table can fill with the keys of other rows; None if there are none."""
    if isinstance(value, str):
        tools = parsed(value)
        foreign = isinstance(tools, list) and any(flat_tool(tool) != tool for tool in tools)
        return (
            json.dumps(list(map(flat_tool, tools)), ensure_ascii=False) if foreign else value if value.strip() else None
        )
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        return None if value is None or value == [] else value
    return json.dumps([flat_tool(parsed(tool)) for tool in value], ensure_ascii=False)


def message_fault(value: Any, name: str) -> str | None:
    """The first thing that no chat template can write of a list of messages in form, with its place; None if nothing.

    Args:
        name: the value, as messages name it.
    """
    for number, message in enumerate(value):
        where = f"message {number} of `{name}`"
        if not isinstance(message, dict):
            return f"{where} is not a mapping"
        if not isinstance(message.get("role"), str):
            return f"{where} has no role"
        content = message.get("content")
        if content is None:
            if not message.get("tool_calls"):
                return f"{where} ({message['role']}) has no content"
        elif isinstance(content, list):
            fault = _block_fault(content)
            if fault:
                return f"{where} has a content block {fault}"
        elif not isinstance(content, str):
            return f"the content of {where} is {content!r:.60}, which is not text"
    return None


def _block_fault(content: list[Any]) -> str | None:
    for block in content:
        if not isinstance(block, str) and not _text_key(block):
            kind = block.get("type") if isinstance(block, dict) else None
            if kind not in MEDIA:
                return f"that is not text: {block!r:.60}"
    return None


def arguments_fault(value: Any, name: str) -> str | None:
    """The first tool call of a list of messages whose arguments are text that is not a JSON object; None if none is."""
    for number, message in enumerate(value):
        for call in message.get("tool_calls") or []:
            function = call.get("function", call) if isinstance(call, dict) else call
            if not isinstance(function, dict):
                return f"tool call in message {number} of `{name}` is {call!r:.60}"
            if isinstance(function.get("arguments"), str):
                return f"arguments in message {number} of `{name}`: {function['arguments']!r:.60}"
    return None
