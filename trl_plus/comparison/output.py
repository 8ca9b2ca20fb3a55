"""Where a comparison goes: the terminal, JSON on standard output, a page, a blind sheet."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from trl_plus.comparison import words
from trl_plus.comparison.blind import key_path, write_sheet
from trl_plus.comparison.run import Comparison, Pair
from trl_plus.comparison.samples import generations_table, prompt_text
from trl_plus.errors import DataError
from trl_plus.runs.metrics import Sample
from trl_plus.ui.console import say

SCHEMA_VERSION = 1  # rises when a key goes or changes its meaning; keys may be added within a version
_SHOWN = 5  # prompts in the terminal
_PROMPT = 300  # characters of each there: its end, which is what is asked


def show_comparison(result: Comparison, as_json: bool, html: Path | None, blind: Path | None) -> None:
    """Print a comparison, as tables or as JSON and nothing else, and write what else is asked for.

    Raises:
        DataError: a file cannot be written.
    """
    written = []
    if html is not None:
        from trl_plus.comparison.page import comparison_page
        from trl_plus.ui.pages import write_page

        try:
            html.parent.mkdir(parents=True, exist_ok=True)
            write_page(comparison_page(result), html)
        except OSError as error:
            raise DataError(f"--html: {html} cannot be written ({error.strerror}): name another file.") from error
        written.append(f"Wrote {html}.")
    if blind is not None:
        triples = [(prompt_text(pair.prompt), pair.base.text, pair.tuned.text) for pair in result.pairs]
        count = write_sheet(triples, blind)
        written.append(
            f"Wrote {blind} with {count} rows to judge, and {key_path(blind)}: set each `winner` to a, b or tie, then "
            f"`trl-plus compare --score {blind}`."
        )
    if as_json:
        print(json.dumps(as_object(result), indent=2, allow_nan=False))
        return
    say(_table(result))
    for note in result.notes:
        say(note)
    say(generations_table([_sample(pair) for pair in result.pairs[:_SHOWN]], words.settings(result.sampling)))
    if len(result.pairs) > _SHOWN:
        say(f"{len(result.pairs) - _SHOWN} more prompts: --html FILE shows all.")
    for sentence in written:
        say(sentence)


def as_object(result: Comparison) -> dict[str, Any]:
    """The comparison as plain dicts, lists, strings, finite numbers, booleans and None."""
    return {
        "schema_version": SCHEMA_VERSION,
        "base": result.base,
        "tuned": result.tuned,
        "prompts": result.source,
        "sampling": asdict(result.sampling),
        "statistics": {model: _finite(asdict(figures)) for model, figures in words.both(result).items()},
        "identical": words.identical(result),
        "answers": [
            {"prompt": pair.prompt, "base": _answer(pair.base), "tuned": _answer(pair.tuned)} for pair in result.pairs
        ],
        "notes": list(result.notes),
    }


def _answer(answer: Any) -> dict[str, Any]:
    return {"text": answer.text, "tokens": len(answer.tokens), "hit_limit": answer.hit_limit}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def _sample(pair: Pair) -> Sample:
    prompt = prompt_text(pair.prompt)
    more = len(prompt) - _PROMPT
    shown = prompt if more <= 0 else f"({more:,} characters) ...{prompt[-_PROMPT:]}"
    return Sample(shown, pair.base.text, pair.tuned.text)


def _table(result: Comparison) -> Table:
    table = Table(title=f"{words.prompts(len(result.pairs))}, {words.settings(result.sampling)}", title_justify="left")
    table.add_column("")
    for title in ("base", "tuned"):
        table.add_column(title, justify="right")
    for title, cells in words.rows(result):
        table.add_row(title, *cells)
    table.caption = f"{words.identical(result)} of {words.prompts(len(result.pairs))} answered alike."
    table.caption_justify = "left"
    return table
