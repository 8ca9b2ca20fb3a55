"""D520: the preferred side can be told without reading."""

from dataclasses import replace

from trl_plus.data.balance import balance
from trl_plus.preflight.checks.lengths import length_bias
from trl_plus.preflight.findings import Shortcut
from trl_plus.preflight.registry import INFO, WARNING, summary_check
from trl_plus.preflight.shortcuts import audit
from trl_plus.preflight.tally import Summary, Verdict
from trl_plus.preflight.target import Target

_NAMED, _LEAST = 5, 0.1  # features that are named, and the weight, in log-odds, below which one is not


@summary_check(
    "D520",
    WARNING,
    "surface features alone predict the preferred side",
    "Look at the rows in which the shortcut is wrong. If the features are not what you want to teach, set "
    "`balance: true`, or add rows in which they point the other way; `trl-plus evaluate` shows accuracy on held-out "
    "pairs in which the shortcut is wrong.",
)
def surface_shortcut(summary: Summary, target: Target) -> Verdict | None:
    found = summary.shortcut
    if found is None or not found.found:
        return None
    evened = _evened(summary) if target.balance else None
    length = found.length_only and length_bias(summary, target) is not None
    wrong = "it favours rejected, which" if found.paired else "misled by a completion that"
    examples = tuple(
        target.example(summary.row(example.row), f"{wrong} {', '.join(example.words)}") for example in found.examples
    )
    sentences = [reached(found), told(found), _beside(found, length)]
    if evened is not None:
        sentences.append(f"With the weights of `balance: true` it reaches {evened.accuracy.value:.1%}.")
    mild = length or (evened is not None and not evened.found)
    return Verdict(" ".join(filter(None, sentences)), examples=examples, severity=INFO if mild else None)


def _evened(summary: Summary) -> Shortcut | None:
    """The accuracy of surface features with the weights that `balance: true` gives to the rows that were looked at."""
    examples = summary.examples
    return None if examples is None else audit(replace(examples, weights=balance(examples).weights))


def reached(found: Shortcut) -> str:
    """The accuracy of the shortcut, in a sentence."""
    value = found.accuracy
    share = f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"
    if found.paired:
        return f"A rule that reads nothing picks the preferred side in {share} of {found.rows} pairs."
    rows = f"{found.rows} rows (mean of both labels)"
    return f"A rule that reads nothing tells wanted from unwanted completions in {share} of {rows}."


def told(found: Shortcut) -> str:
    """By which features, in words, the heaviest first."""
    named = [trait for trait in found.traits[:_NAMED] if abs(trait.weight) >= _LEAST]
    parts = "; ".join(f"{trait.words} ({abs(trait.weight):.2f})" for trait in named)
    subject = "The preferred side" if found.paired else "A wanted completion"
    return f"{subject}, by weight in log-odds: {parts}." if named else ""


def _beside(found: Shortcut, length: bool) -> str:
    """How much of it is length, and in how many rows it is wrong."""
    rows = "pairs" if found.paired else "rows"
    wrong = f"The rule is wrong in {found.wrong} {rows}."
    if length:
        return f"Length explains it, see D510: without length the rule reaches {found.other.value:.1%}. {wrong}"
    return f"Length alone reaches {found.length.value:.1%}, the other features {found.other.value:.1%}. {wrong}"
