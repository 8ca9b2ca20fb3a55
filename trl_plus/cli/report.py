"""trl-plus report RUN: one page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus report runs/quickstart

trl-plus report runs/quickstart --out report.html

trl-plus report runs/b --against runs/a
"""


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The `output_dir` of a run, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page here instead of RUN/report.html.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show another run beside it, curves over the same axes.")
    ] = None,
) -> None:
    """Write one HTML page about a run: figures, curves, warnings, answers, data, recipe, and how to run it again.

    Everything is read from the run's folder; the page needs no other file and no network.
    """
    from trl_plus.report.page import write_report

    with exit_codes():
        typer.echo(f"Wrote {write_report(run, out, against)}.")
