"""Length and repetition of answers, in tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from trl_plus.comparison.answers import Answer

GRAM = 4


@dataclass(frozen=True)
class Statistics:
    """Counts over the answers of one model. Shares are from 0 to 1; None if there is nothing to count.

    Attributes:
        mean_tokens, median_tokens, longest: tokens of an answer, without the stop token.
        repeated_4grams: share of the 4-grams that came up earlier in the same answer.
        distinct_1, distinct_2: distinct n-grams of all answers together, divided by their number (Li et al. 2016). It
            falls as more is written: compare models on the same prompts only.
        hit_limit: answers that ended at the limit, without a stop token.
        empty: answers without text.
    """

    answers: int
    mean_tokens: float
    median_tokens: float
    longest: int
    repeated_4grams: float | None
    distinct_1: float | None
    distinct_2: float | None
    hit_limit: int
    empty: int


def statistics(answers: Sequence[Answer]) -> Statistics:
    """Statistics of at least one answer."""
    lengths = [len(answer.tokens) for answer in answers]
    repeated, grams = map(sum, zip(*(repeats(answer.tokens) for answer in answers), strict=True))
    return Statistics(
        answers=len(answers),
        mean_tokens=fmean(lengths),
        median_tokens=float(median(lengths)),
        longest=max(lengths),
        repeated_4grams=repeated / grams if grams else None,
        distinct_1=_distinct(answers, 1),
        distinct_2=_distinct(answers, 2),
        hit_limit=sum(answer.hit_limit for answer in answers),
        empty=sum(not answer.text for answer in answers),
    )


def repeats(tokens: Sequence[int]) -> tuple[int, int]:
    """(4-grams that came up earlier in the same tokens, all 4-grams).

    >>> repeats([1, 2, 3, 4, 1, 2, 3, 4])
    (1, 5)
    """
    grams = list(_grams(tokens, GRAM))
    return len(grams) - len(set(grams)), len(grams)


def _distinct(answers: Iterable[Answer], size: int) -> float | None:
    grams = [gram for answer in answers for gram in _grams(answer.tokens, size)]
    return len(set(grams)) / len(grams) if grams else None


def _grams(tokens: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    return zip(*(tokens[start:] for start in range(size)), strict=False)
