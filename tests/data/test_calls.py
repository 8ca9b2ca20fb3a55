"""Tool calls of other vendors, and tools under other keys."""

import json

import pytest

from tests.conftest import user
from trl_plus.data.calls import flat_tool, with_calls
from trl_plus.data.messages import messages_in_form, tools_in_form


def call(name, arguments, identity="t1"):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def use(name, given, identity="t1"):
    return {"type": "tool_use", "id": identity, "name": name, "input": given}


def result(content, identity="t1"):
    return {"type": "tool_result", "tool_use_id": identity, "content": content}


def text(content):
    return {"type": "text", "text": content}


@pytest.mark.parametrize(
    "messages, formed",
    [
        (
            [user("q"), {"role": "assistant", "content": [text("a"), use("f", {"x": 1}), use("g", {}, "t2")]}],
            [
                user("q"),
                calling(call("f", {"x": 1}), call("g", {}, "t2"), content="a"),
            ],
        ),
        (
            [{"role": "assistant", "content": [use("f", {})]}],
            [calling(call("f", {}))],
        ),
        (
            [
                {"role": "assistant", "content": [use("f", {})]},
                {
                    "role": "user",
                    "content": [result([text("r"), text("s")]), text("and?"), result("", "t9"), text("so?")],
                },
            ],
            [
                calling(call("f", {})),
                {"role": "tool", "tool_call_id": "t1", "name": "f", "content": "r\ns"},
                user("and?"),
                {"role": "tool", "tool_call_id": "t9", "content": ""},
                user("so?"),
            ],
        ),
        (
            [
                user("q"),
                {"role": "assistant", "content": "Let me see."},
                {"type": "function_call", "call_id": "t1", "name": "f", "arguments": '{"x": 1}'},
                {"type": "function_call", "call_id": "t2", "name": "g", "arguments": ""},
                {"type": "function_call_output", "call_id": "t2", "output": "r"},
            ],
            [
                user("q"),
                {
                    "role": "assistant",
                    "content": "Let me see.",
                    "tool_calls": [call("f", {"x": 1}), call("g", {}, "t2")],
                },
                {"role": "tool", "tool_call_id": "t2", "name": "g", "content": "r"},
            ],
        ),
        (
            [user("q"), {"role": "tool_call", "content": '[{"name": "f"}]'}, {"role": "tool_response", "content": "r"}],
            [
                user("q"),
                calling({"type": "function", "function": {"arguments": {}, "name": "f"}}),
                {"role": "tool", "content": "r"},
            ],
        ),
    ],
)
def test_calls(messages, formed):
    assert messages_in_form(messages) == formed


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool_call", "content": "f(x)"},
        {"role": "assistant", "content": [{"type": "server_tool_use", "name": "f"}]},
        {"type": "reasoning", "summary": []},
        "text",
    ],
)
def test_what_is_no_call_stays(message):
    assert with_calls([user("q"), message]) == [user("q"), message]


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
NESTED = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "tool, formed",
    [
        ({"name": "f", "description": "d", "input_schema": SCHEMA}, NESTED),
        ({"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}, NESTED),
        (NESTED, NESTED),
        ({"name": "f", "parameters": SCHEMA}, {"name": "f", "parameters": SCHEMA}),
        ({"type": "web_search"}, {"type": "web_search"}),
    ],
)
def test_tools(tool, formed):
    assert flat_tool(tool) == formed
    assert json.loads(tools_in_form([tool])) == json.loads(tools_in_form(json.dumps([tool]))) == [formed]
