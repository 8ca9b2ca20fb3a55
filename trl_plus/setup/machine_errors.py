"""Machine errors (disk, memory, lost processes) as one message that names the fix. Imports no torch."""

import errno
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_plus.errors import DataError, RecipeError, RunFault
from trl_plus.recipes.recipe import Recipe
from trl_plus.recipes.yaml_text import inline
from trl_plus.runs import checkpoint_files
from trl_plus.upstream.libraries import missing_packages

_SHORTEST = 2  # the least that `max_length` may be
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_machine(recipe: Recipe) -> None:
    """Before anything heavy: optional packages are installed and the output folder can be written.

    Raises:
        RecipeError: a package is missing, or the folder cannot be written.
    """
    missing = list(missing_packages(recipe.values))
    if missing:
        raise RecipeError(missing)
    folder = Path(recipe["output_dir"]).expanduser()
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as file:  # permissions alone do not tell: read-only disks, root
            file.write(b"0" * 4096)
    except OSError as error:
        raise RecipeError(f"`output_dir`: cannot write to {folder}: {error.strerror}. Name another one.") from error


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Turn errors of the machine into `RunFault`; everything else passes unchanged."""
    try:
        yield
    except (RecipeError, DataError, RunFault):
        raise
    except Exception as error:
        text = explain(error, recipe)
        if text is None:
            raise
        raise RunFault(text) from error


def explain(error: BaseException, recipe: Recipe) -> str | None:
    """The message for a fault of the machine; None for anything else."""
    chain = list(_chain(error))
    for link in chain:
        kind, text = type(link).__name__, str(link)
        if kind in ("NonFiniteError", "Unscorable"):
            return text
        disk = _disk(link)
        if disk is not None:
            return (
                f"The disk of {recipe['output_dir']} {disk}. {saved(recipe)} Free some space, set `save_total_limit` "
                "or name another `output_dir`, and continue with --resume."
            )
        if kind == "OutOfMemoryError" or isinstance(link, MemoryError) or _NO_MEMORY.search(text):
            return f"Out of memory. {saved(recipe)} {less_memory(recipe)} `trl-plus estimate RECIPE` shows what fits."
        if isinstance(link, RuntimeError) and (kind.startswith("Dist") or _LOST.search(text)):
            return (
                f"Another process of this run ended or cannot be reached ({text.strip().splitlines()[0][:200]}). "
                f"{saved(recipe)} The reason is in what that process printed: fix it, and start all processes again "
                "with --resume."
            )
        if _WORKER.search(text):
            return (
                f"A worker process was killed ({text.splitlines()[0]}), most often for want of memory. {saved(recipe)} "
                "Lower `dataloader_num_workers` or `dataset_num_proc`, and continue with --resume."
            )
    return None


def _disk(error: BaseException) -> str | None:
    """The state of the disk according to an error; None if the error is about something else."""
    if (isinstance(error, OSError) and error.errno in _FULL) or _NO_SPACE.search(str(error)):
        return "is full"
    # torch.save reports no errno
    return "is full, or took no more for another reason" if _CUT_SHORT.search(str(error)) else None


_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_CUT_SHORT = re.compile(r"PytorchStreamWriter|iostream error|inline_container.*unexpected pos")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED")
_LOST = re.compile(r"gloo|NCCL|TCPStore")  # what torch.distributed speaks through
_WORKER = re.compile(r"DataLoader worker .*(killed|exited)|subprocesses has abruptly died")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def saved(recipe: Recipe) -> str:
    """A sentence on what is safe."""
    newest = checkpoint_files.find(Path(recipe["output_dir"]).expanduser()).newest
    if newest is None:
        return "No complete checkpoint was saved yet."
    return f"The last complete checkpoint is {newest}."


def less_memory(recipe: Recipe) -> str:
    """Settings that lower memory, with values; the first of them leaves the gradient as it is."""
    cures = [f"{overrides(values)} ({remark})" for values, remark in memory_cures(recipe)]
    return "Try, in this order: " + "; ".join(cures) + "." if cures else "Take a smaller model or a larger GPU."


def overrides(values: Mapping[str, Any]) -> str:
    """Values as the words of a command line."""
    return " ".join(f"{name}={inline(value)}" for name, value in values.items())


def memory_cures(recipe: Recipe) -> list[tuple[dict[str, Any], str]]:
    """Values that lower the memory of a recipe, and a remark on each; the mildest first."""
    rows, accumulation = recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]
    cures: list[tuple[dict[str, Any], str]] = []
    if rows > 1:
        fewer = max(n for n in range(1, rows) if rows % n == 0)
        batch = {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": accumulation * rows // fewer}
        cures.append((batch, "the same training"))
    if not recipe["gradient_checkpointing"]:
        cures.append(({"gradient_checkpointing": True}, "the same training, slower"))
    if not recipe["use_peft"]:
        cures.append(({"use_peft": True}, "LoRA"))
    if not recipe["load_in_4bit"]:
        lora = {} if recipe["use_peft"] else {"use_peft": True}
        cures.append(({**lora, "load_in_4bit": True}, "QLoRA"))
    if recipe["max_length"] and recipe["max_length"] > _SHORTEST:
        cures.append(({"max_length": max(recipe["max_length"] // 2, _SHORTEST)}, "cuts or drops long rows"))
    return cures
