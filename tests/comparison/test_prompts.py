"""Prompts of a file and of held-out rows: the same messages as training reads, with tools, and nothing left out."""

import json

import pytest

from tests.conftest import build_tokenizer, user
from tests.preflight.toys import build_toy
from trl_plus.comparison.answers import as_text
from trl_plus.comparison.prompts import held_out_prompts, prompt_text, read_prompts, with_run_arguments
from trl_plus.errors import DataError

FUNCTION = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [FUNCTION]}
TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
USE = [{"type": "tool_use", "name": "f", "input": {"x": 1}}]


def read(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prompts(str(path), None)


@pytest.mark.parametrize(
    "row, messages",
    [
        ({"prompt": [{"role": "user", "content": TEXTS}]}, [user("a\nb")]),
        ({"prompt": json.dumps([user("a")])}, [user("a")]),
        ([user("a")], [user("a")]),
        ({"prompt": "a", "system": "s"}, [{"role": "system", "content": "s"}, user("a")]),
        ({"messages": [user("a"), {"role": "assistant", "content": "b"}], "history": [["c", "d"]]},
         [user("c"), {"role": "assistant", "content": "d"}, user("a")]),
        ({"prompt": [user("a"), {"role": "assistant", "content": USE}, user("b")]},
         [user("a"), CALL, user("b")]),
        ({"prompt": "a", "system": ""}, "a"),
        ({"prompt": [user("a")], "context": "a"}, [user("a")]),
    ],
)  # fmt: skip
def test_prompts_of_a_file(tmp_path, row, messages):
    (prompt,) = read(tmp_path, row)
    assert prompt == messages


@pytest.mark.parametrize(
    "row, words",
    [
        (
            {"prompt": [user("a")], "context": "A lake in May."},
            "the text of `context` is not in the prompt: write",
        ),
        ({"prompt": "a", "question": "Which lake?"}, "the text of `question` is not in the prompt"),
        ({"prompt": [{"role": "user", "content": None}]}, "has no content: correct it"),
        ({"prompt": [{"role": "user", "content": [{"type": "chart"}]}]}, "has a content block that is not text"),
        ({"prompt": 3}, "holds no prompt"),
    ],
)
def test_lines_that_are_no_prompt(tmp_path, row, words):
    with pytest.raises(DataError, match=f"line 1.*{words}"):
        read(tmp_path, row)


def test_tools_and_arguments_of_the_template_are_used(tmp_path):
    tools = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    template = f"{{{{ mood }}}}{tools}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    tokenizer = build_toy(template)
    tools = [{"name": "find_bird", "input_schema": {"type": "object", "properties": {}}}]
    row = {"prompt": [user("Why?")], "tools": tools, "chat_template_kwargs": {"mood": "calm "}}
    (prompt,) = read(tmp_path, row)
    assert as_text(tokenizer, prompt) == "calm find_birdWhy?"
    formed = {**row, "tools": json.dumps([{"type": "function", "function": {"name": "find_bird"}}])}
    answer = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    (prompt,) = held_out_prompts([{**formed, **answer}], 1)
    assert as_text(tokenizer, prompt) == "calm find_birdWhy?"
    (own,) = with_run_arguments([prompt], {"mood": "gruff "})
    assert as_text(tokenizer, own) == "calm find_birdWhy?"
    (plain,) = with_run_arguments([[user("Why?")]], {"mood": "gruff "})
    assert as_text(tokenizer, plain) == "gruff Why?"


def test_calls_are_shown():
    assert prompt_text([user("a"), CALL]) == f"user: a\nassistant:  {json.dumps(CALL['tool_calls'])}"


def test_a_text_is_a_text():
    assert as_text(build_tokenizer(), "Why?") == "Why?"
