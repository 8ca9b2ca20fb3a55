"""What goes wrong on the machine and not in the recipe, each as one message with the cure. Imports no torch."""

import errno
import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trl_plus import checkpoint_files
from trl_plus.data.files import DataError
from trl_plus.recipes.errors import RecipeError, RunFault
from trl_plus.recipes.recipe import Recipe

# tracker: the modules it needs, any of them, and what to install
_TRACKERS = {
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "mlflow": (("mlflow",), "mlflow"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "clearml": (("clearml",), "clearml"),
    "dvclive": (("dvclive",), "dvclive"),
    "swanlab": (("swanlab",), "swanlab"),
    "trackio": (("trackio",), "trackio"),
    "codecarbon": (("codecarbon",), "codecarbon"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_machine(recipe: Recipe) -> None:
    """Before anything heavy: the trackers are installed and the output folder can be written.

    Raises:
        RecipeError: one of them is not so.
    """
    asked = recipe["report_to"] or []
    for name in [asked] if isinstance(asked, str) else asked:
        modules, package = _TRACKERS.get(name, ((), ""))
        if modules and not any(importlib.util.find_spec(module) for module in modules):
            raise RecipeError(f"`report_to: {name}` needs a package: pip install {package}, or set `report_to: none`.")
    folder = Path(recipe["output_dir"]).expanduser()
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as file:  # permissions alone do not tell: read-only disks, root
            file.write(b"0" * 4096)
    except OSError as error:
        raise RecipeError(f"`output_dir`: cannot write to {folder}: {error.strerror}. Name another one.") from error


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """Turns faults of the machine into `RunFault`; everything else passes as it is."""
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
        if kind == "NonFiniteError":
            return text
        full = isinstance(link, OSError) and link.errno in _FULL
        if full or "No space left on device" in text or "Disk quota exceeded" in text:
            return (
                f"The disk of {recipe['output_dir']} is full. {saved(recipe)} Free some space, set `save_total_limit` "
                "or name another `output_dir`, and go on with --resume."
            )
        if kind == "OutOfMemoryError" or isinstance(link, MemoryError) or _NO_MEMORY.search(text):
            return f"Out of memory. {saved(recipe)} {less_memory(recipe)}"
        if _WORKER.search(text):
            return (
                f"A worker process was killed ({text.splitlines()[0]}), most often for want of memory. {saved(recipe)} "
                "Lower `dataloader_num_workers` or `dataset_num_proc`, and go on with --resume."
            )
    return None


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED")
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
    """What to lower, with values; the first of them leaves the gradient as it is."""
    rows, accumulation = recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]
    cures = []
    if rows > 1:
        fewer = max(n for n in range(1, rows) if rows % n == 0)
        cures.append(
            f"per_device_train_batch_size={fewer} gradient_accumulation_steps={accumulation * rows // fewer} (the same "
            "training)"
        )
    if not recipe["gradient_checkpointing"]:
        cures.append("gradient_checkpointing=true (the same training, slower)")
    if not recipe["use_peft"]:
        cures.append("use_peft=true (LoRA)")
    elif not recipe["load_in_4bit"]:
        cures.append("load_in_4bit=true (QLoRA)")
    if recipe["max_length"]:
        cures.append(f"max_length={max(recipe['max_length'] // 2, 2)} (cuts or drops long rows)")
    return "Try, in this order: " + "; ".join(cures) + "." if cures else "Take a smaller model or a larger GPU."
