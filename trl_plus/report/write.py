"""Write the pages: of a run, of several, of a folder of runs; again and again while they train."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trl_plus.data.files import as_path
from trl_plus.errors import RecipeError
from trl_plus.report.index import INDEX, index_page, is_run, runs_in
from trl_plus.report.page import goes_on, run_page
from trl_plus.report.run import Run, read_run
from trl_plus.runs.folder import REPORT
from trl_plus.ui.pages import write_page

INTERVAL = 10.0  # seconds between two pages of a run that trains
_OURS = ("<title>Report: ", "<title>Runs: ")


def write_report(
    arguments: Sequence[str],
    out: Path | None,
    against: str | None,
    watch: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Write the page of a run, of several, or of a folder of runs; returns its path.

    Args:
        arguments: folders of runs, or one folder that holds runs.
        out: the file. Without it, report.html in the folder of the run, also with `against`; of several runs,
            report.html beside the first; of a folder of runs, index.html in it.
        against: one more run.
        watch: write the page again every INTERVAL seconds while a run trains.

    Raises:
        RecipeError: one of them is not a run, or the file cannot be written.
    """
    folders = [as_path(argument) for argument in arguments]
    whole = len(folders) == 1 and against is None and _holds_runs(folders[0])
    path = out or _place(folders, whole)
    if path.is_dir():
        raise RecipeError(f"--out: {path} is a folder: name a file in it.")

    def make(refresh: bool) -> bool:
        """Write the page; returns True if a run of it goes on."""
        if whole:
            runs = [read_run(str(folder)) for folder in runs_in(folders[0])]
        else:
            runs = _different([*arguments, *([] if against is None else [against])])
        going = any(goes_on(run) for run in runs)
        seconds = INTERVAL if refresh and going else None
        if whole:
            _write_each(runs)
        page = index_page(folders[0], runs, path.parent, seconds) if whole else run_page(*runs, refresh=seconds)
        _write(page, path, guarded=out is None and (whole or len(arguments) > 1))
        return going

    going = make(watch)
    say(f"Wrote {path}.")
    if watch and going:
        say(f"It is written again every {INTERVAL:g} s while training goes on. Ctrl-C ends that, not the run.")
        try:
            while going:
                time.sleep(INTERVAL)
                going = make(True)
        finally:
            make(False)  # a page that does not load itself again
    return path


def _holds_runs(folder: Path) -> bool:
    return folder.is_dir() and not is_run(folder) and next(runs_in(folder), None) is not None


def _place(folders: Sequence[Path], whole: bool) -> Path:
    if whole:
        return folders[0] / INDEX
    return (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / REPORT


def _different(arguments: Sequence[str]) -> list[Run]:
    """The runs, each of them another one."""
    found: dict[Path, Run] = {}
    for argument in arguments:
        folder = as_path(argument)
        if len(arguments) > 1 and _holds_runs(folder):
            raise RecipeError(f"{argument} holds runs and is not a run. Fix: name its runs, as in `{folder}/*/`.")
        run = read_run(argument)
        if run.folder.resolve() in found:
            raise RecipeError(f"{argument} is the same run as one before it. Fix: name another one.")
        found[run.folder.resolve()] = run
    return list(found.values())


def _write_each(runs: Sequence[Run]) -> None:
    """The report of each run that has none, or one that is older than a file of the run. A run in a folder that cannot
    be written has no link."""
    for run in runs:
        path = run.folder / REPORT
        files = [file for file in run.folder.glob("*.*") if file.suffix in (".json", ".jsonl", ".yaml")]
        try:
            if not path.is_file() or path.stat().st_mtime <= max(file.stat().st_mtime for file in files):
                write_page(run_page(run), path)
        except OSError:
            continue


def _write(page: str, path: Path, guarded: bool) -> None:
    """Write a page.

    Args:
        guarded: nobody named the file: refuse to overwrite one that is not ours.
    """
    try:
        if guarded and path.is_file():
            begin = path.read_text(encoding="utf-8", errors="replace")[:4096]
            if not any(title in begin for title in _OURS):
                raise RecipeError(
                    f"{path} is there and is not a page of `trl-plus report`. Fix: name a file with --out."
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, path)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror}): name another file with --out.") from error
