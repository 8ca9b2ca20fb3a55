"""A comparison in the terminal, as JSON, as a page, and as a blind sheet."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from trl_plus.comparison.answers import Answer, Sampling
from trl_plus.comparison.blind import key_path, write_sheet
from trl_plus.comparison.marks import Piece, change, marks
from trl_plus.comparison.prompts import generations_table, prompt_text
from trl_plus.comparison.run import BASE, TUNED, Comparison, Pair
from trl_plus.comparison.statistics import Statistics, repeats, statistics
from trl_plus.errors import DataError
from trl_plus.evaluation.intervals import wilson_interval
from trl_plus.preflight.words import PARAGRAPH
from trl_plus.runs.journal import Sample
from trl_plus.ui.console import clipped, counted, say
from trl_plus.ui.pages import render

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
            f"Wrote {blind} with {counted(count, 'row')} to judge, and {key_path(blind)}: set each `winner` to a, b or "
            f"tie, then `trl-plus compare --score {blind}`."
        )
    if as_json:
        print(json.dumps(as_object(result), indent=2, allow_nan=False))
        return
    say(_table(result))
    for note in result.notes:
        say(note)
    say(generations_table([_sample(pair) for pair in result.pairs[:_SHOWN]], settings(result.sampling)))
    if len(result.pairs) > _SHOWN:
        say(f"{counted(len(result.pairs) - _SHOWN, 'more prompt')}: --html FILE shows all.")
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
        "statistics": {model: _finite(asdict(figures)) for model, figures in both(result).items()},
        "identical": identical(result),
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
    table = Table(title=f"{counted(len(result.pairs), 'prompt')}, {settings(result.sampling)}", title_justify="left")
    table.add_column("")
    for title in ("base", "tuned"):
        table.add_column(title, justify="right")
    for title, cells in figures(result):
        table.add_row(title, *cells)
    table.caption = f"{identical(result)} of {counted(len(result.pairs), 'prompt')} answered alike."
    table.caption_justify = "left"
    return table


# -- figures, the same in the terminal and on the page ------------------------------------------------------------


def both(result: Comparison) -> dict[str, Statistics]:
    """Statistics by model."""
    return {model: statistics(result.answers(model)) for model in (BASE, TUNED)}


def figures(result: Comparison) -> list[tuple[str, list[str]]]:
    """The table of statistics: (what, [base, tuned])."""
    figures = list(both(result).values())
    return [
        ("tokens per answer: mean", [f"{each.mean_tokens:.1f}" for each in figures]),
        ("median", [f"{each.median_tokens:g}" for each in figures]),
        ("longest", [f"{each.longest:,}" for each in figures]),
        (
            "hit the limit [95% interval]",
            [_share(each.hit_limit, each.answers) for each in figures],
        ),
        ("repeated 4-grams within an answer", [_figure(each.repeated_4grams, ".1%") for each in figures]),
        ("distinct-1 over all answers", [_figure(each.distinct_1) for each in figures]),
        ("distinct-2 over all answers", [_figure(each.distinct_2) for each in figures]),
        ("empty answers", [f"{each.empty:,}" for each in figures]),
    ]


def identical(result: Comparison) -> int:
    """Prompts that both models answer with the same text."""
    return sum(pair.base.text == pair.tuned.text for pair in result.pairs)


def settings(sampling: Sampling) -> str:
    """The generation settings in words."""
    limit = f"at most {sampling.max_new_tokens:,} tokens"
    if not sampling.temperature:
        return f"greedy, {limit}"
    return f"sampled at temperature {sampling.temperature:g} with seed {sampling.seed}, {limit}"


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count / total, total)
    return f"{count} of {total}, {count / total:.0%} [{low:.0%}, {high:.0%}]"


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


# -- the page -----------------------------------------------------------------------------------------------------

_TEXT = 50_000  # characters shown of a prompt or an answer


def comparison_page(result: Comparison) -> str:
    """The page: the answers that changed most first, equal ones last and folded.

    It shows all answers without JavaScript; with it they can be filtered and sorted.
    """
    pairs = [_pair(number, pair) for number, pair in enumerate(result.pairs, 1)]
    return render(
        "comparison.html.j2",
        "run.css",
        "comparison.css",
        "comparison.js",
        base=clipped(result.base, PARAGRAPH),
        tuned=clipped(result.tuned, PARAGRAPH),
        source=clipped(result.source, PARAGRAPH),
        settings=settings(result.sampling),
        notes=[clipped(note, PARAGRAPH) for note in result.notes],
        statistics=figures(result),
        identical=identical(result),
        total=len(pairs),
        changed=sorted((pair for pair in pairs if not pair["alike"]), key=lambda pair: -pair["change"]),
        alike=[pair for pair in pairs if pair["alike"]],
    )


def _pair(number: int, pair: Pair) -> dict[str, Any]:
    base, tuned = (clipped(answer.text, _TEXT) for answer in (pair.base, pair.tuned))
    share = change(pair.base.text, pair.tuned.text)
    marked = marks(base, tuned)
    return {
        "number": number,
        "prompt": clipped(prompt_text(pair.prompt), _TEXT),
        "change": share,
        "alike": pair.base.text == pair.tuned.text,
        "spaces": pair.base.text != pair.tuned.text and pair.base.text.split() == pair.tuned.text.split(),
        "longer": len(pair.tuned.tokens) - len(pair.base.tokens),
        "hit": pair.base.hit_limit or pair.tuned.hit_limit,
        "answers": [
            (name, _answer_view(answer, pieces))
            for name, answer, pieces in zip((BASE, TUNED), (pair.base, pair.tuned), marked, strict=True)
        ],
    }


def _answer_view(answer: Answer, pieces: list[Piece]) -> dict[str, Any]:
    repeated, grams = repeats(answer.tokens)
    return {
        "pieces": pieces,
        "tokens": len(answer.tokens),
        "hit_limit": answer.hit_limit,
        "repeated": round(100 * repeated / grams) if grams else 0,
    }
