"""Answers to a few held-out prompts, generated before and after training and printed side by side."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from trl_plus.comparison.prompts import Prompt
from trl_plus.runs.metrics import Sample
from trl_plus.ui.printable import printable

MAX_NEW_TOKENS = 48


def generate(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers of at most MAX_NEW_TOKENS tokens. The model's training mode is restored."""
    from trl_plus.comparison.answers import Sampling, answers_of

    return [answer.text for answer in answers_of(model, tokenizer, prompts, Sampling(MAX_NEW_TOKENS))]


def generations_table(samples: Sequence[Sample], how: str | None = None) -> Table:
    """Prompts and answers side by side: of a run before and after, or, where `how` they were made is said, of a
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
