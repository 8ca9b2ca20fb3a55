"""Which checkpoint `--resume` means."""

from pathlib import Path

from trl_plus.recipes.errors import RecipeError

NEWEST = "newest"  # the value of `--resume` without a path


def find_checkpoint(resume: str, output_dir: str) -> str:
    """The checkpoint folder to resume from.

    Args:
        resume: a checkpoint folder, or NEWEST for the last one in `output_dir`.

    Raises:
        RecipeError: there is none.
    """
    folder = Path(output_dir if resume == NEWEST else resume).expanduser()
    if not folder.is_dir():
        raise RecipeError(f"--resume: the folder {folder} does not exist: start without --resume.")
    if (folder / "trainer_state.json").is_file() and resume != NEWEST:
        return str(folder)
    from transformers.trainer_utils import get_last_checkpoint

    newest = get_last_checkpoint(str(folder))
    if newest is None:
        raise RecipeError(f"--resume: {folder} holds no checkpoint: start without --resume, or name another folder.")
    return str(newest)
