"""The figures of a comparison in words, the same in the terminal and on the page."""

from trl_plus.comparison.answers import Sampling
from trl_plus.comparison.run import BASE, TUNED, Comparison
from trl_plus.comparison.statistics import Statistics, statistics
from trl_plus.evaluation.intervals import wilson_interval


def both(result: Comparison) -> dict[str, Statistics]:
    """Statistics by model."""
    return {model: statistics(result.answers(model)) for model in (BASE, TUNED)}


def rows(result: Comparison) -> list[tuple[str, list[str]]]:
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
        ("repeated 4-grams within an answer", [_percent(each.repeated_4grams) for each in figures]),
        ("distinct-1 over all answers", [_figure(each.distinct_1) for each in figures]),
        ("distinct-2 over all answers", [_figure(each.distinct_2) for each in figures]),
        ("empty answers", [f"{each.empty:,}" for each in figures]),
    ]


def identical(result: Comparison) -> int:
    """Prompts that both models answer with the same text."""
    return sum(pair.base.text == pair.tuned.text for pair in result.pairs)


def prompts(count: int) -> str:
    """A number of prompts."""
    return f"{count:,} prompt{'' if count == 1 else 's'}"


def settings(sampling: Sampling) -> str:
    """How the answers were made."""
    limit = f"at most {sampling.max_new_tokens:,} tokens"
    if not sampling.temperature:
        return f"greedy, {limit}"
    return f"sampled at temperature {sampling.temperature:g} with seed {sampling.seed}, {limit}"


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count / total, total)
    return f"{count} of {total}, {count / total:.0%} [{low:.0%}, {high:.0%}]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
