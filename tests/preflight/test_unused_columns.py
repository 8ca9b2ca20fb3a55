"""Columns that belong to the prompt and are not used, and arguments that are not JSON."""

import pytest
from datasets import Dataset

from tests.conftest import user
from trl_plus.preflight import checks  # noqa: F401  (registers them)
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.registry import TEXT
from trl_plus.preflight.rows import kind_of, read_row
from trl_plus.preflight.unused import unused_columns


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


DIALOGUE = [{"input": "Why?", "output": "It was said long ago."}]


@pytest.mark.parametrize(
    "value, used",
    [
        (DIALOGUE, True),  # the last answer does not belong to the prompt
        ([*DIALOGUE, *DIALOGUE], False),
        ([user("Why?"), assistant("It was said long ago.")], True),
        ([user("Why not?"), assistant("It melts.")], False),
    ],
)
def test_the_last_answer_of_a_dialogue(value, used):
    assert (detail("D112", {**CHAT, "conversation": value}) is None) == used


@pytest.mark.parametrize(
    "prompt, found",
    [
        ("### Instruction:\nWhy?\n\n### Response:\n", True),
        ("Human: Why?\nAssistant:", True),
        ("User: Why?\nBot: ", True),
        ("What does `### Response:` mean?", False),
        ("Complete the line\nAssistant: Hello", False),
        ("Which one is right? Answer:", False),
    ],
)
def test_the_opening_of_an_answer(prompt, found):
    assert (detail("D214", {**CHAT, "prompt": [user(prompt)]}) is not None) == found
    assert detail("D214", {**TEXTS, "prompt": prompt}) is None  # text is trained on as it stands


PROSE = "Two people stand at a lake in May."


@pytest.mark.parametrize("row", [TEXTS, CHAT])
@pytest.mark.parametrize(
    "columns, severity, named",
    [
        ({"scenario": PROSE, "source": "web"}, Severity.WARNING, "`scenario`, `source`"),
        ({"source": "a crawl of many pages in 2020"}, Severity.INFO, "`source`"),
        ({"topic": "lakes", "source": "web"}, None, ""),
        ({"場面": "二人が五月の湖のほとりに立っている。"}, Severity.WARNING, "`場面`"),
        ({"all_generated_responses": ["It melts.", "It may well be that ice melts in May."]}, Severity.INFO,
         "`all_generated_responses`"),
        ({"turns": [{"role": "user", "content": PROSE}]}, Severity.WARNING, "`turns`"),
        ({"again": "It melts."}, None, ""),
        ({"empty": "", "none": None, "number": 3, "score_chosen": 4.0}, None, ""),
    ],
)  # fmt: skip
def test_columns_of_no_known_meaning(row, columns, severity, named):
    found = list(unused_columns("train", Dataset.from_list([{**row, **columns}] * 3), kind_of(row)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert [finding.sentence for finding in found] == [f"The text of {named} is not trained on."] * len(found)
    assert {finding.code for finding in found} <= {"D117"}
