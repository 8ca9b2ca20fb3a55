"""Columns that belong to the prompt and are not used, and arguments that are not JSON."""

import pytest

from tests.conftest import user
from trl_plus.preflight.registry import TEXT
from trl_plus.preflight.rows import kind_of, read_row


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def detail(code, row):
    return TEXT[code].function(read_row(row, 0, kind_of(row)))


TEXTS = {"prompt": "Ice in summer. What does it do?", "chosen": "It melts.", "rejected": "It sings."}
CHAT = {"prompt": [user("Why?")], "chosen": [assistant("It melts.")], "rejected": [assistant("It sings.")]}


@pytest.mark.parametrize("row", [TEXTS, CHAT])
@pytest.mark.parametrize(
    "name, value, used",
    [
        ("context", "A lake in May.", False),
        ("system", "Answer in rhymes.", False),
        ("history", [["Hello.", "Hi there."]], False),
        ("messages", [user("Something else?")], False),
        ("context", "  ", True),
        ("context", None, True),
        ("input", "", True),
        ("history", [], True),
        ("source", "a crawl of 2020", True),
        ("messages", [{"role": "user", "content": "It melts."}], True),
    ],
)
def test_unused(row, name, value, used):
    found = detail("D112", {**row, name: value})
    assert (found is None) == used
    assert used or found.startswith(f"`{name}`: ")


def test_all_of_them_are_named():
    found = detail(
        "D112", {**TEXTS, "question": "Which lake?", "initial_reason_steps": "Step 1.", "context": "What does it do?"}
    )
    assert found.startswith("`question`, `initial_reason_steps`: ")


@pytest.mark.parametrize(
    "arguments, found", [({"a": 1}, False), ("", True), ('{"a": ', True), ("[1]", True)]
)  # what is JSON is a mapping by then
def test_arguments(arguments, found):
    calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
    assert (detail("D213", {**CHAT, "chosen": [assistant("", tool_calls=calls)]}) is not None) == found
