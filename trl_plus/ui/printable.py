"""Text of a dataset or a model, made safe for a terminal or a page."""

import re

# Control characters except newline and tab (an escape sequence can rewrite the screen or the window's title), the
# marks that turn the direction of the text round them, and halves of surrogate pairs, which no file can hold
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, and not show, written out as `\\x1b` and the like."""
    return _UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters of a text, made printable, and how many more there are."""
    more = len(text) - limit
    return printable(text) if more <= 0 else f"{printable(text[:limit])}... (+{more:,} characters)"
