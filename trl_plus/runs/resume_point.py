"""Which checkpoint `--resume` means."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.runs import checkpoint_files as files

_NAMED = 5  # checkpoints that an error names
NEWEST = "newest"  # the value of `--resume` without a path


def find_checkpoint(
    resume: str, output_dir: str, max_steps: int = -1, say: Callable[[Any], None] = lambda text: None
) -> str:
    """The checkpoint folder to resume from: the newest complete one, or the one that is named.

    Args:
        resume: a checkpoint folder, an output folder, or NEWEST for `output_dir`.
        max_steps: of the recipe; -1 where epochs end the run.
        say: told why each newer checkpoint was passed over.

    Raises:
        RecipeError: there is no complete one, or it is beyond the run's last step.
    """
    folder = _complete(resume, output_dir, say)
    steps = json.loads((folder / files.STATE).read_text(encoding="utf-8"))["global_step"]
    if 0 < max_steps < steps:
        raise RecipeError(f"--resume: {folder} is at step {steps}, beyond max_steps {max_steps}: raise max_steps.")
    return str(folder)


def resumed_folder(resume: str, output_dir: str) -> Path:
    """The folder that `--resume` names.

    Raises:
        RecipeError: there is none.
    """
    if not resume.strip():
        raise RecipeError("--resume= names no folder: write --resume for the newest checkpoint, or --resume PATH.")
    folder = Path(output_dir if resume == NEWEST else resume).expanduser()
    if folder.is_file():
        raise RecipeError(f"--resume: {folder} is a file: name a checkpoint folder.")
    if not folder.is_dir():
        others = files.checkpoints(folder.parent) if files.step_of(folder) >= 0 else []
        cure = f"name one that {folder.parent} holds, {_named(others)}" if others else "start without --resume"
        raise RecipeError(f"--resume: the folder {folder} does not exist: {cure}.")
    return folder


def _named(folders: list[Path]) -> str:
    more = len(folders) - _NAMED
    return ", ".join(path.name for path in folders[:_NAMED]) + (f" or {more} more" if more > 0 else "")


def _complete(resume: str, output_dir: str, say: Callable[[Any], None]) -> Path:
    folder = resumed_folder(resume, output_dir)
    if resume != NEWEST and (files.step_of(folder) >= 0 or (folder / files.STATE).is_file()):
        problem = files.problem_of(folder)
        if problem is not None:
            raise RecipeError(f"--resume: {folder} is not complete: {problem}. Name another checkpoint.")
        return folder
    found = files.find(folder)
    if found.newest is None:
        why = f" ({'; '.join(found.passed_over)})" if found.passed_over else ""
        kind = "complete checkpoint" if found.passed_over else "checkpoint"
        raise RecipeError(f"--resume: {folder} holds no {kind}{why}: start without --resume, or name another folder.")
    for reason in found.passed_over:
        say(f"Passed over {reason}.")
    return found.newest
