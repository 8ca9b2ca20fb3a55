"""Where an evaluation goes: the terminal, JSON on standard output, and the folder of the weights that it judged."""

import sys
from pathlib import Path

from trl_plus.evaluation.as_json import json_text
from trl_plus.evaluation.run import Evaluation
from trl_plus.evaluation.shown import FILE
from trl_plus.runs.checkpoint_files import step_of
from trl_plus.ui.console import say


def show_evaluation(evaluation: Evaluation, as_json: bool, folder: Path | None = None) -> None:
    """Print an evaluation, as tables or as JSON and nothing else.

    Args:
        folder: keep it here, in `evaluation.json`, for `trl-plus report`; the one before it goes.
    """
    if as_json:
        print(json_text(evaluation))
    else:
        from trl_plus.evaluation.table import evaluation_report

        for part in evaluation_report(evaluation):
            say(part)
    if folder is not None:
        _keep(evaluation, folder, quiet=as_json)


def _keep(evaluation: Evaluation, folder: Path, quiet: bool) -> None:
    """A folder that cannot be written costs the file and nothing else: the figures are printed already."""
    part = folder / f".{FILE}.part"
    try:
        part.write_text(json_text(evaluation) + "\n", encoding="utf-8")
        part.replace(folder / FILE)
    except OSError as error:
        print(f"{folder / FILE} could not be written ({error.strerror}): the report will not show it.", file=sys.stderr)
        return
    if not quiet:
        shown = "" if step_of(folder.absolute()) >= 0 else "; `trl-plus report` shows it"
        say(f"Kept in {folder / FILE}{shown}.")
