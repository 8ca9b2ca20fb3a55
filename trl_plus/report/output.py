"""Where the report of a run goes."""

from pathlib import Path

from trl_plus.errors import RecipeError
from trl_plus.report.page import run_page
from trl_plus.report.run import read_run
from trl_plus.ui.pages import write_page

FILE = "report.html"


def write_report(run: str, out: Path | None, against: str | None) -> Path:
    """Write the page of a run, or of two; gives its path.

    Args:
        out: the file; report.html in the folder of `run` if it is None.

    Raises:
        RecipeError: one of them is no run, or the file cannot be written.
    """
    first = read_run(run)
    second = None if against is None else read_run(against)
    if second is not None and first.folder.resolve() == second.folder.resolve():
        raise RecipeError(f"--against {against} is the same run: name another one.")
    path = first.folder / FILE if out is None else out
    if path.is_dir():
        raise RecipeError(f"--out: {path} is a folder: name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(run_page(first, second), path)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror}): name another file with --out.") from error
    return path
