"""Tool calls of other vendors as `tool_calls` and messages of the role `tool`.

Anthropic keeps calls and results as content blocks (`tool_use`, `tool_result`), OpenAI's Responses API as items of the
conversation (`function_call`, `function_call_output`), ms-swift as messages of the roles `tool_call` and
`tool_response`. Parts of any other kind stay as they are.
"""

import json
from typing import Any

from trl_plus.data.responses import Message

CALL_ROLES = ("tool_call", "tool_response")


def with_calls(messages: list[Any]) -> list[Any]:
    """The messages, in which calls and results stand as chat templates take them."""
    names: dict[Any, Any] = {}
    made: list[Any] = []
    for message in messages:
        if not isinstance(message, dict):
            made.append(message)
        elif message.get("type") == "function_call" and "role" not in _filled(message):
            _add(made, [_call(message.get("call_id"), message.get("name"), message.get("arguments"), names)])
        elif message.get("role") == "tool_call" and (calls := _written(message.get("content"))):
            _add(made, calls)
        elif message.get("role") == "tool_response":
            made.append({**message, "role": "tool"})
        elif message.get("type") == "function_call_output" and "role" not in _filled(message):
            made.append(_result(message.get("call_id"), message.get("output"), names))
        elif _holds(message, "tool_use"):
            made.append(_calling(message, names))
        elif _holds(message, "tool_result"):
            made += _answering(message, names)
        else:
            made.append(message)
    return made


def flat_tool(tool: Any) -> Any:
    """A tool under the keys of chat templates, {type, function: {name, description, parameters}}."""
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return tool
    if isinstance(tool.get("input_schema"), dict):  # Anthropic
        rest = {key: part for key, part in tool.items() if key not in ("input_schema", "type", "cache_control")}
        return {"type": "function", "function": {**rest, "parameters": tool["input_schema"]}}
    if tool.get("type") == "function" and "function" not in tool:  # OpenAI's Responses API
        return {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}
    return tool


def _filled(message: Message) -> set[str]:
    return {key for key, part in message.items() if part is not None}


def _add(made: list[Any], calls: list[Message]) -> None:
    """Add calls to the assistant's turn, or as a turn."""
    if made and isinstance(made[-1], dict) and made[-1].get("role") == "assistant":
        made[-1] = {**made[-1], "tool_calls": [*(made[-1].get("tool_calls") or []), *calls]}
    else:
        made.append({"role": "assistant", "content": "", "tool_calls": calls})


def _written(content: Any) -> list[Message]:
    """The calls that stand in a message as JSON text, one or a list of them; none if it is other text."""
    try:
        value = json.loads(content) if isinstance(content, str) else None
    except ValueError:
        return []
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return []
    return [{"type": "function", "function": {"arguments": {}, **call}} for call in calls]


def _holds(message: Message, kind: str) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == kind for part in content)


def _call(identity: Any, name: Any, arguments: Any, names: dict[Any, Any]) -> Message:
    names[identity] = name
    call = {"type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}}
    return call if identity is None else {"id": identity, **call}


def _result(identity: Any, content: Any, names: dict[Any, Any]) -> Message:
    made = {"role": "tool", "tool_call_id": identity, "name": names.get(identity), "content": content or ""}
    return {key: part for key, part in made.items() if part is not None}


def _calling(message: Message, names: dict[Any, Any]) -> Message:
    """An assistant message whose blocks `tool_use` are its calls."""
    blocks, calls = [], list(message.get("tool_calls") or [])
    for part in message["content"]:
        if isinstance(part, dict) and part.get("type") == "tool_use":
            calls.append(_call(part.get("id"), part.get("name"), part.get("input"), names))
        else:
            blocks.append(part)
    return {**message, "content": blocks or "", "tool_calls": calls}


def _answering(message: Message, names: dict[Any, Any]) -> list[Message]:
    """A user message whose blocks `tool_result` become messages of the tool, the blocks between them the user's."""
    made: list[Message] = []
    for part in message["content"]:
        if isinstance(part, dict) and part.get("type") == "tool_result":
            made.append(_result(part.get("tool_use_id"), part.get("content"), names))
        elif made and made[-1]["role"] == message["role"]:
            made[-1]["content"].append(part)
        else:
            made.append({**message, "content": [part]})
    return made
