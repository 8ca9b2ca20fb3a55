"""A folder of runs as one page: a line for each run."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from trl_plus.evaluation.intervals import ACCURACY, LOSS, MARGIN
from trl_plus.recipes.recipe import RESOLVED as RECIPE
from trl_plus.report.page import overview
from trl_plus.report.run import Run
from trl_plus.runs.folder import LOG, REPORT
from trl_plus.runs.journal import METRICS
from trl_plus.ui.console import clipped, counted
from trl_plus.ui.pages import render

INDEX = "index.html"
_DEPTH = 3  # folders below the named one: runs/, runs/sweep/, runs/sweep/run


def is_run(folder: Path) -> bool:
    """True if a folder holds a file of a run that a report can be made of."""
    return any(os.path.isfile(folder / name) for name in (RECIPE, LOG, METRICS))


def runs_in(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The runs in a folder and in the folders below, up to `depth`. The inside of a run is not searched."""
    if depth == 0:
        return
    try:
        inside = sorted(path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith("."))
    except OSError:
        return
    for path in inside:
        if is_run(path):
            yield path
        else:
            yield from runs_in(path, depth - 1)


def index_page(folder: Path, runs: list[Run], at: Path, refresh: float | None = None) -> str:
    """The page of a folder of runs, the newest first.

    Args:
        at: the folder that the page lies in: links are relative to it.
        refresh: seconds after which a browser loads the page again.
    """
    runs = sorted(runs, key=lambda run: str((run.begins[0] if run.begins else {}).get("time") or ""), reverse=True)
    names = [clipped(os.path.relpath(run.folder, folder), 120) for run in runs]
    shown = overview(names, runs, (ACCURACY, MARGIN, LOSS))
    for run, row in zip(runs, shown.rows, strict=True):
        report = run.folder / REPORT
        row["link"] = _link(report, at) if report.is_file() else None
        row["problems"] = len(run.problems)
    return render(
        "index.html.j2",
        "run.css",
        refresh=refresh,
        name=clipped(folder.resolve().name, 80),
        count=counted(len(runs), "run"),
        going=sum(row["outcome"].state == "info" for row in shown.rows),
        groups=len({row["group"] for row in shown.rows} - {""}),
        overview=shown,
    )


def _link(path: Path, at: Path) -> str:
    """A relative address, which no name can turn into another scheme or host."""
    return "./" + quote(Path(os.path.relpath(path.resolve(), at.resolve())).as_posix())
