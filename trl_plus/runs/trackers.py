"""One run is one run of its trackers, too: named once, gone on with when it is resumed, final evaluation included.

The trackers are transformers' (`report_to`); here they are only told which run it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from trl_plus.runs.checkpoint_files import step_of

TENSORBOARD_FOLDER = "runs"  # inside `output_dir`: transformers' place, and where the hub looks


def run_id(folder: Path, began: datetime) -> str:
    """What tells a run from others: the name of its folder, and when its journal begins.

    Characters that W&B refuses in an id are replaced.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.resolve().name)[:80]}-{began:%Y%m%d-%H%M%S}"


@contextmanager
def told_to_trackers(args: Any, folder: Path, began: datetime) -> Iterator[None]:
    """Give the run a name, unless it has one, and put what trackers read into the environment while it is entered.

    Variables that are set already are left as they are, and with WANDB_RUN_ID its WANDB_RESUME.
    """
    if not args.report_to:
        yield
        return
    identity = run_id(folder, began)
    if args.run_name is None:
        args.run_name = identity
    told = {"TENSORBOARD_LOGGING_DIR": str(folder / TENSORBOARD_FOLDER / identity), "WANDB_PROJECT": args.project}
    if "WANDB_RUN_ID" not in os.environ:
        told |= {"WANDB_RUN_ID": identity, "WANDB_RESUME": "allow"}
    told = {name: value for name, value in told.items() if name not in os.environ}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name, None)


def go_on_with_tensorboard(callbacks: Sequence[Any], checkpoint: str) -> None:
    """What TensorBoard was told after the checkpoint that a run goes on from is logged again, so it must go.

    Call it on the main process only: it opens the event file.
    """
    for callback in callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is not None:
            callback.tb_writer = _writer(callback.logging_dir, step_of(Path(checkpoint)) + 1)


def _writer(folder: str, purge_step: int) -> Any:
    for module in ("torch.utils.tensorboard", "tensorboardX"):  # transformers takes either
        try:
            return import_module(module).SummaryWriter(folder, purge_step=purge_step)
        except ImportError:
            continue
    raise ImportError("pip install tensorboard")  # the callback exists, so one of them is there


def end_trackers(trainer: Any) -> None:
    """Close what the evaluation after training has opened again."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ in ("TensorBoardCallback", "TrackioCallback"):
            callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
