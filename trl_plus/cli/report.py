"""trl-plus report RUNS...: one page about a run, several runs, or a folder of runs."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus report runs/quickstart

trl-plus report runs/quickstart --watch

trl-plus report runs/b --against runs/a

trl-plus report runs/a runs/b runs/c --out three.html

trl-plus report runs
"""


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="The `output_dir` of each run, finished or not, or a folder of runs."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the page here instead of RUN/report.html (several runs: report.html beside the first; a folder "
            "of runs: index.html in it).",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show one more run on the page of RUN, curves over the same axes.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again while a run trains; a browser reloads it.")
    ] = False,
) -> None:
    """Write one HTML page about runs: figures, curves, warnings, answers, data, recipe, and how to run them again.

    Of a folder of runs, an index with the report of each. Everything is read from the folders of the runs; a page needs
    no other file and no network.
    """
    from trl_plus.report.write import write_report

    with exit_codes():
        write_report(runs, out, against, watch, typer.echo)
