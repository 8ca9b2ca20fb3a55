"""Which checkpoint `--resume` means."""

import json
from pathlib import Path

from trl_plus.recipes.errors import RecipeError

NEWEST = "newest"  # the value of `--resume` without a path


def find_checkpoint(resume: str, output_dir: str, max_steps: int = -1) -> str:
    """The checkpoint folder to resume from.

    Args:
        resume: a checkpoint folder, or NEWEST for the last one in `output_dir`.
        max_steps: of the recipe; -1 where epochs end the run.

    Raises:
        RecipeError: there is none, or the run has made all of its steps.
    """
    folder = _newest(resume, output_dir)
    steps = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    if 0 < max_steps <= steps:  # transformers would make one more step
        raise RecipeError(f"--resume: {folder} is at step {steps} of max_steps {max_steps}: raise max_steps to go on.")
    return str(folder)


def _newest(resume: str, output_dir: str) -> Path:
    folder = Path(output_dir if resume == NEWEST else resume).expanduser()
    if folder.is_file():
        raise RecipeError(f"--resume: {folder} is a file: name a checkpoint folder.")
    if not folder.is_dir():
        raise RecipeError(f"--resume: the folder {folder} does not exist: start without --resume.")
    if (folder / "trainer_state.json").is_file() and resume != NEWEST:
        return folder
    from transformers.trainer_utils import get_last_checkpoint

    newest = get_last_checkpoint(str(folder))
    if newest is None:
        raise RecipeError(f"--resume: {folder} holds no checkpoint: start without --resume, or name another folder.")
    return Path(newest)
