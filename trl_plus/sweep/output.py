"""The results of a sweep in the terminal, as `sweep.json`, and as a page."""

import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trl_plus.errors import DataError
from trl_plus.sweep.results import MEASURES, Results, Row, write_results
from trl_plus.ui.console import printable, say

PAGE = "sweep.html"


def show_results(found: Results, html: Path | None) -> None:
    """Print the table and the sentences, and write `sweep.json` and the page.

    Raises:
        DataError: a file cannot be written.
    """
    from trl_plus.sweep.page import sweep_page
    from trl_plus.ui.pages import write_page

    say(table(found))
    for sentence in found.sentences:
        say(sentence)
    for label, problem in found.failed.items():
        say(f"Failed: {label}: {problem}")
    path = html or found.plan.folder / PAGE
    try:
        written = write_results(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(sweep_page(found), path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): name another file with --html.") from error
    say(f"Wrote {path} and {written}.")


def table(found: Results) -> Table:
    """One row for each value: accuracy and margin of its seeds."""
    title = f"{found.pairs:,} held-out pairs of {found.prompts:,} prompts, scored by {MEASURES[found.measure]}"
    shown = Table(title=Text(f"\n{title}"), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    shown.pad_edge = False
    shown.add_column("value", overflow="fold")
    for name in ("accuracy", "of each seed", "mean margin", ""):
        shown.add_column(name, justify="left" if not name else "right")
    for place, row in enumerate(found.rows):
        shown.add_row(Text(printable(row.label)), *cells(row), state(found, place))
    shown.caption = remark(found)
    return shown


def cells(row: Row) -> tuple[str, str, str]:
    """Mean accuracy, accuracy of each seed, mean margin."""
    return figure(row.accuracy), " ".join(map(figure, row.accuracies)), figure(row.margin, "+.3g")


def figure(value: float, form: str = ".3f") -> str:
    """A figure; "-" for a run that is missing."""
    return "-" if math.isnan(value) else format(value, form)


def state(found: Results, place: int) -> str:
    """A remark on a value: the best accuracy, left by successive halving, or missing runs."""
    row = found.rows[place]
    if row.left is not None:
        return f"left after step {row.left:,}"
    missing = sum(math.isnan(value) for value in row.accuracies)
    said = ["highest accuracy"] if place == found.best else []
    return ", ".join([*said, *([f"{missing} of {len(row.accuracies)} runs failed"] if missing else [])])


def remark(found: Results) -> str:
    """A note on how the differences were judged."""
    count = len(found.differences)
    if not count:
        return ""
    said = (
        f"{count} comparison{'s' if count > 1 else ''}, corrected by Holm's procedure: with 95% no verdict is wrong. "
        "Intervals cover prompts and seeds."
    )
    if found.left_out:
        said += f" {found.left_out:,} pairs that some run lacks are left out."
    return said


def names(found: Results) -> dict[int, Any]:
    """The label of each value, by its place."""
    return {place: row.label for place, row in enumerate(found.rows)}
