"""Record a run while it trains: metrics, journal, progress, trackers. Imports transformers."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from trl_plus.runs.checkpoint_files import step_of
from trl_plus.runs.journal import Journal


class MetricsFile(TrainerCallback):
    """Writes every log event as one line of `metrics.jsonl`, on the main process.

    A resumed run keeps the lines up to its checkpoint; later ones are written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if state.global_step and _step(line) <= state.global_step]
        part = self.path.with_name(f"{self.path.name}.part")  # a run killed here keeps its lines
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        part.replace(self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> float:
    """The step of a line; infinite for one that a killed run left half-written."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


class JournalSteps(TrainerCallback):
    """Keeps the journal's optimizer step up to date."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.training(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.step = state.global_step + 1

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.step = state.global_step


class LogLastStep(TrainerCallback):
    """Logs the last step whatever `logging_steps` is, so that the last figures of a run have their loss."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True


class AlreadyFinished(TrainerCallback):
    """Prints that no step is left of a resumed run. Comes after callbacks that can stop it before its first step."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and (state.global_step >= state.max_steps or control.should_training_stop):
            self.say(f"Already finished at step {state.global_step:,}: no step is left to make.")


class FirstEvaluation(TrainerCallback):
    """Hands the metrics of the evaluation before the first step (`eval_on_start`) to `keep`, on the main process."""

    def __init__(self, keep: Callable[[dict[str, float]], None]) -> None:
        self.keep = keep

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if args.eval_on_start and state.global_step == 0 and state.is_world_process_zero and metrics:
            self.keep(dict(metrics))


class ShortProgress(ProgressCallback):
    """transformers' progress bar, which counts optimizer steps, with one short line per log event.

    All metrics of the event are in metrics.jsonl and in the trackers.
    """

    SHOWN: ClassVar[dict[str, str]] = {
        "loss": "loss",
        "eval_loss": "held-out loss",
        "rewards/accuracies": "accuracy",
        "eval_rewards/accuracies": "held-out accuracy",
        "rewards/margins": "margin",
        "eval_rewards/margins": "held-out margin",
        "kl": "kl",
        "grad_norm": "grad norm",
        "learning_rate": "lr",
    }

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        shown = [f"{title} {float(logs[name]):.4g}" for name, title in self.SHOWN.items() if name in logs]
        if shown:
            self.training_bar.write(f"step {state.global_step}: {', '.join(shown)}")


def use_short_progress(trainer: Any) -> None:
    """Put ShortProgress in the place of transformers' progress bar, unless `disable_tqdm` switched that off."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ShortProgress())


# -- trackers: one run is one run of its trackers, too ------------------------------------------------------------

TENSORBOARD_FOLDER = "runs"  # inside `output_dir`: transformers' place, and where the hub looks


def run_id(folder: Path, began: datetime) -> str:
    """The identity of a run: the name of its folder, and the time when its journal begins.

    Characters that W&B refuses in an id are replaced.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.resolve().name)[:80]}-{began:%Y%m%d-%H%M%S}"


@contextmanager
def told_to_trackers(args: Any, folder: Path, began: datetime) -> Iterator[None]:
    """Name the run, unless it has a name, and set the environment variables of the trackers inside the block.

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
    """Drop TensorBoard's events after the checkpoint that a run resumes from: they are logged again.

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
