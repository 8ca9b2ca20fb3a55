"""A comparison as one HTML page, which needs no other file and no network."""

from typing import Any

from trl_plus.comparison import words
from trl_plus.comparison.answers import Answer
from trl_plus.comparison.run import Comparison, Pair
from trl_plus.comparison.samples import prompt_text
from trl_plus.comparison.statistics import change, repeats
from trl_plus.preflight.words import PARAGRAPH
from trl_plus.ui.pages import render
from trl_plus.ui.printable import clipped

_TEXT = 50_000  # characters shown of a prompt or an answer


def comparison_page(result: Comparison) -> str:
    """The page. It shows all answers without JavaScript; with it they can be filtered and sorted."""
    return render(
        "comparison.html.j2",
        "run.css",
        "comparison.css",
        "comparison.js",
        base=clipped(result.base, PARAGRAPH),
        tuned=clipped(result.tuned, PARAGRAPH),
        source=clipped(result.source, PARAGRAPH),
        settings=words.settings(result.sampling),
        notes=[clipped(note, PARAGRAPH) for note in result.notes],
        statistics=words.rows(result),
        identical=words.identical(result),
        pairs=[_pair(number, pair) for number, pair in enumerate(result.pairs, 1)],
    )


def _pair(number: int, pair: Pair) -> dict[str, Any]:
    return {
        "number": number,
        "prompt": clipped(prompt_text(pair.prompt), _TEXT),
        "change": change(pair.base.text, pair.tuned.text),
        "longer": len(pair.tuned.tokens) - len(pair.base.tokens),
        "hit": pair.base.hit_limit or pair.tuned.hit_limit,
        "answers": [("base", _answer(pair.base)), ("tuned", _answer(pair.tuned))],
    }


def _answer(answer: Answer) -> dict[str, Any]:
    repeated, grams = repeats(answer.tokens)
    return {
        "text": clipped(answer.text, _TEXT),
        "tokens": len(answer.tokens),
        "hit_limit": answer.hit_limit,
        "repeated": round(100 * repeated / grams) if grams else 0,
    }
