"""Terminal output: sentences, tables and progress bars, and text made safe to print."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def say(what: Any) -> None:
    """Print a sentence or a rich table. Sentences are printed as they are, without markup or wrapping."""
    from rich.console import Console

    console = Console()
    if isinstance(what, str):
        console.print(printable(what), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(what)


# Control characters except newline and tab (an escape sequence can rewrite the screen or the window's title), the
# marks that turn the direction of the text round them, and halves of surrogate pairs, which no file can hold
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, and not show, written out as `\\x1b` and the like."""
    return _UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, which gets an "s" unless the number is 1.

    >>> counted(1, "row"), counted(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters of a text, made printable, and how many more there are."""
    more = len(text) - limit
    return printable(text) if more <= 0 else f"{printable(text[:limit])}... (+{more:,} characters)"


@contextmanager
def row_progress(shown: bool, text: str = "Looking at {} rows") -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that takes a split, rows done and rows in all (None if unknown), and draws a bar on a terminal.

    Args:
        text: what stands before the bar, with a place for the split.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(split: str, done: int, total: int | None) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(text.format(split), total=total)
            progress.update(tasks[split], completed=done, total=total)

        yield advance


@contextmanager
def quiet_maps() -> Iterator[None]:
    """Without the progress bars of the datasets library and the warnings of TRL's tokenization: they come per batch."""
    import logging

    import datasets

    shown = datasets.is_progress_bar_enabled()
    loggers = {name: logging.getLogger(name) for name in ("trl", "trl_plus", "transformers")}
    levels = {name: logger.level for name, logger in loggers.items()}
    datasets.disable_progress_bars()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
