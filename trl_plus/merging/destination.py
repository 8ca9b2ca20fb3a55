"""Checks of a merge before torch is imported: an adapter, and a folder for the merged model."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trl_plus.data.files import as_path
from trl_plus.errors import RecipeError, RunFault
from trl_plus.runs.weights import Weights


def check_adapter(weights: Weights) -> None:
    """Raise a RecipeError if there is nothing to merge."""
    if not weights.adapter:
        raise RecipeError(f"{weights.path} holds a full model: nothing has to be merged, it can be served as it is.")


def check_destination(name: str) -> Path:
    """The path of a folder that does not exist yet, or is empty.

    Raises:
        RecipeError: something is there, or nothing can be written there.
    """
    path = as_path(name)
    if path.exists() and not path.is_dir():
        raise RecipeError(f"{name} is a file: name a new folder.")
    if path.is_dir() and any(path.iterdir()):
        raise RecipeError(f"{name} is not empty: name a new folder, or empty this one.")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise RecipeError(f"{name} cannot be written: {error.strerror}. Name another folder.") from error
    return path


def shard_size(text: str) -> str:
    """A size such as "2GB", as transformers reads it.

    Raises:
        RecipeError: it is not a size.
    """
    if not re.fullmatch(r"[1-9]\d*\s*([KMGT]i?)?B", text, re.IGNORECASE):
        raise RecipeError(f"--max-shard-size {text}: give a size such as 500MB or 2GB.")
    return text.replace(" ", "")


def check_space(path: Path, needed: int, halves: bool) -> None:
    """Raise a RunFault if the disk has less room than a model of `needed` bytes takes.

    Args:
        halves: the model takes half as much in bfloat16.
    """
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise RunFault(
            f"The merged model takes {needed / 1e9:.1f} GB and the disk of {path} has {free / 1e9:.1f} GB left: free "
            f"some, or name a folder on another disk{', or halve it with --dtype bfloat16' if halves else ''}."
        )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A folder to write into. It gets the name `path` when the block ends, and is deleted if the block fails.

    Raises:
        RunFault: writing failed.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".part", dir=path.absolute().parent))
    try:
        part.chmod(0o755)  # a temporary folder is its owner's alone
        yield part
        for file in part.iterdir():
            file.chmod(0o644)  # so are files of safetensors; a server may run as another user
        part.replace(path)  # an empty folder gives way
    except OSError as error:
        raise RunFault(f"{path} could not be written: {error.strerror or error}. Nothing was left there.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
