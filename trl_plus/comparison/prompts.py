"""Prompts of held-out rows or of a file, and answers to a few of them. Imports no torch."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rich.table import Table
from rich.text import Text

from trl_plus.data.files import as_path
from trl_plus.data.folding import FOLDED, turns_of
from trl_plus.data.forms import row_in_form
from trl_plus.data.messages import listed, looks_listed, message_fault
from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.data.templates import template_arguments
from trl_plus.data.unused import PROMPT_PARTS, texts_in, unused
from trl_plus.errors import DataError
from trl_plus.runs.journal import Sample
from trl_plus.ui.console import printable


class Conversation(list[dict[str, Any]]):
    """Messages, with what else the chat template is given: `tools` and `chat_template_kwargs`."""

    def __init__(self, messages: list[dict[str, Any]], arguments: dict[str, Any]):
        super().__init__(messages)
        self.arguments = arguments


Prompt = str | list[dict[str, Any]]  # a text, or messages

_JSON = (".jsonl", ".json")
_NO_PROMPTS = (".csv", ".tsv", ".parquet", ".yaml", ".yml")  # would be read as lines of text


def held_out_prompts(dataset: Any, count: int) -> list[Prompt]:
    """`count` different prompts, evenly spread over a dataset in any format; the first ones of a stream."""
    prompts: list[Prompt] = []
    for row in _spread(dataset, count):
        prompt = _prompt(dict(row))
        if prompt not in prompts:
            prompts.append(prompt)
        if len(prompts) == count:
            break
    return prompts


def _spread(dataset: Any, count: int) -> Iterator[Any]:
    """The middle row of each of `count` equal parts, then other rows for where a prompt comes up again."""
    if not hasattr(dataset, "__len__"):
        yield from islice(iter(dataset), 20 * count)
        return
    rows = len(dataset)
    middles = [rows * (2 * part + 1) // (2 * count) for part in range(count)]
    yield from (dataset[index] for index in (*middles, *range(min(rows, 20 * count))))


def _prompt(row: dict[str, Any]) -> Prompt:
    sides = sides_of(list(row))
    if is_conversation(row[sides[0]]):
        return Conversation(split_response(row, sides)["prompt"], template_arguments(row))
    if "prompt" in row:
        return row["prompt"]
    from trl import extract_prompt

    return extract_prompt(row)["prompt"]


def read_prompts(name: str, count: int | None) -> list[Prompt]:
    """The prompts of a file, at most `count` of them, each once.

    A name that ends in .jsonl holds a JSON object a line: `prompt`, a text or a list of messages, or `messages`, whose
    last assistant turn is left out; beside it `system`, `history`, `tools` and `chat_template_kwargs` as in training
    data. Any other file holds a prompt a line; blank lines are passed over.

    Raises:
        DataError: the file does not exist, a line is not a prompt, or a part of it cannot be used.
    """
    path = as_path(name)
    if path.suffix.lower() in _NO_PROMPTS:
        raise DataError(
            f"--prompts: {name} is neither text nor JSON lines: write a prompt a line, in a file ending in .txt."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"--prompts: {name} is not text in UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"--prompts: {name} cannot be read ({error.strerror}): check the path.") from error
    found: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _json_prompt(line, f"--prompts: {name}, line {number}") if path.suffix in _JSON else line
            found += [] if prompt in found else [prompt]
        if count is not None and len(found) == count:
            break
    if not found:
        raise DataError(f"--prompts: {name} holds no prompt: write one a line.")
    return found


def as_conversations(prompts: list[Prompt]) -> list[Prompt]:
    """Texts as the only message of a user."""
    return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]


def _json_prompt(line: str, place: str) -> Prompt:
    try:
        value: Any = json.loads(line)
    except ValueError:
        raise DataError(f"{place} is no JSON: write an object a line, or name the file .txt for plain text.") from None
    row = value if isinstance(value, dict) else {"prompt": value}
    value = row["prompt"] if row.get("prompt") else row.get("messages")
    value = value if looks_listed(value) or not isinstance(value, str) or not _in_front(row) else [_asks(value)]
    formed = row_in_form({**row, "prompt": listed(value), "completion": [{"role": "assistant", "content": ""}]}, {})
    value = formed["prompt"]
    if (isinstance(value, str) and value.strip()) or is_conversation(value):
        gone = unused(formed, PROMPT_PARTS, texts_in(value))
        if gone:
            raise DataError(
                f"{place}: the text of `{gone[0]}` is not in the prompt: write it into `prompt`, or remove `{gone[0]}`."
            )
    if is_conversation(value):
        fault = message_fault(value, "prompt")
        if fault is not None:
            raise DataError(f"{place}: {fault}: correct it.")
        asked = value[:-1] if value[-1]["role"] == "assistant" else value
        if asked:
            return Conversation(asked, template_arguments(formed))
    elif isinstance(value, str) and value.strip():
        return value
    raise DataError(f"{place} holds no prompt: give it `prompt`, a text or a list of messages, or `messages`.")


def _in_front(row: dict[str, Any]) -> bool:
    """True if a column stands for turns in front of the prompt."""
    return any(row.get(name) and turns_of(name, row[name]) for name in FOLDED)


def _asks(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


# -- answers to a few prompts, without loading torch before they are made -----------------------------------------

MAX_NEW_TOKENS = 48


def generate(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers of at most MAX_NEW_TOKENS tokens. The model's training mode is restored."""
    from trl_plus.comparison.answers import Sampling, answers_of

    return [answer.text for answer in answers_of(model, tokenizer, prompts, Sampling(MAX_NEW_TOKENS))]


def generations_table(samples: Sequence[Sample], how: str | None = None) -> Table:
    """Prompts and answers side by side: of a run before and after, or, if `how` they were made is given, of a
    comparison."""
    title = "Held-out prompts, greedy answers" if how is None else f"Answers, {how}"
    table = Table(title=title, title_justify="left", show_lines=True)
    for title in ("prompt", *(("before", "after") if how is None else ("base", "tuned"))):
        table.add_column(title, ratio=1, overflow="fold")
    for sample in samples:
        # Text, not str: square brackets in an answer are no markup
        table.add_row(*(Text(printable(part or "-")) for part in (sample.prompt, sample.before, sample.after)))
    return table


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}{_calls(turn)}" for turn in prompt)


def _calls(turn: dict[str, Any]) -> str:
    calls = turn.get("tool_calls")
    return f" {json.dumps(calls, ensure_ascii=False)}" if calls else ""
