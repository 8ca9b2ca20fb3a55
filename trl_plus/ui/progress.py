"""A progress bar over rows, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def row_progress(shown: bool, text: str = "Looking at {} rows") -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that takes a split, rows done and rows in all (None if unknown), and draws a bar on a terminal.

    Args:
        text: what stands before the bar, with a place for the split.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(split: str, done: int, total: int | None) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(text.format(split), total=total)
            progress.update(tasks[split], completed=done, total=total)

        yield advance
