"""The words in which two answers differ."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

Piece = tuple[str, bool]  # a stretch of text, and whether the other answer lacks it

# Chinese and Japanese write no spaces: each of their characters is a word
_LETTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_LETTER}]|[^\s{_LETTER}]+")
_LIMIT = 4_000_000  # words of one answer times those of the other that are compared: a second


def change(base: str, tuned: str) -> float:
    """Return the share of two texts that differs: 0 if their words are equal, 1 if they have no word in common."""
    first, second = _words(base), _words(tuned)
    if first == second:
        return 0.0
    kept = sum(size for _, _, size in _common(first, second))
    return round(1 - 2 * kept / (len(first) + len(second)), 4)


def marks(base: str, tuned: str) -> tuple[list[Piece], list[Piece]]:
    """Cut two texts into stretches that they share and stretches that only one of them has.

    White space is not compared. The stretches of a text, joined, are the text.

    >>> marks("I like tea", "I hate tea")
    ([('I ', False), ('like ', True), ('tea', False)], [('I ', False), ('hate ', True), ('tea', False)])
    """
    common = _common(_words(base), _words(tuned))
    return _pieces(base, [(a, size) for a, _, size in common]), _pieces(tuned, [(b, size) for _, b, size in common])


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _common(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int, int]]:
    """(place in the first, place in the second, number) of the stretches of words that both have, in their order.

    Of texts that are too long to be compared, only the words that they begin and end with alike.
    """
    if len(first) * len(second) <= _LIMIT:
        return [tuple(block) for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()]
    shorter = min(len(first), len(second))
    begin = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    end = next((n for n in range(shorter - begin) if first[-1 - n] != second[-1 - n]), shorter - begin)
    return [(0, 0, begin), (len(first) - end, len(second) - end, end)]


def _pieces(text: str, shared: Sequence[tuple[int, int]]) -> list[Piece]:
    """The stretches of a text, of which the words (place, number) are shared. A word ends where the next begins."""
    begins = [match.start() for match in _WORD.finditer(text)]
    bounds = [0, *begins[1:], len(text)]
    own = [True] * len(begins)
    for place, size in shared:
        own[place : place + size] = [False] * size
    found, at = [], 0
    for differs, group in groupby(own):
        end = at + len(list(group))
        found.append((text[bounds[at] : bounds[end]], differs))
        at = end
    return found or ([(text, False)] if text else [])
