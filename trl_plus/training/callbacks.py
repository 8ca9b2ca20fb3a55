"""Callbacks of a run: its record (metrics, journal, progress, trackers) and its end. Imports transformers."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_plus.errors import RecipeError
from trl_plus.launch.processes import leave_terminal, stopping_signals
from trl_plus.recipes.options import RunOptions
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


# -- the end of a run: signals, early stopping, and which checkpoint is kept ----------------------------------------


# A launcher passes on what the terminal has sent to every process already: that is no second Ctrl-C
_ONE_PRESS_S = 1.0


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint, or its model; the message says which."""


class Paused(Stopped):
    """The run has reached the step that it was to stop at, and has saved a checkpoint."""


class StopOnSignal(TrainerCallback):
    """Inside the block, the first signal lets the current step finish; a second Ctrl-C stops at once.

    Before training and after `done`, a signal stops at once: nothing would be saved by waiting.

    Args:
        until: stop after this optimizer step as well, as a signal during it would.
    """

    def __init__(self, output_dir: str, say: Callable[[Any], None], until: int | None = None) -> None:
        self.output_dir, self.say, self.until = output_dir, say, until
        self._asked_at: float | None = None
        self._training = False
        self._saving = False
        self._after: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._before = {number: signal.signal(number, self._handle) for number in stopping_signals()}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def done(self, after: str) -> None:
        """Tell that the model is saved: a signal now stops at once with the message `after`, as does an earlier one."""
        self._training, self._after = False, after
        if self._asked_at is not None:
            raise Stopped(after)

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        leave_terminal(number)
        if self._after is not None:
            raise Stopped(self._after)
        if not self._training:
            raise KeyboardInterrupt
        if self._asked_at is None:
            self._asked_at = now
            # not through `say`: a signal can arrive in the middle of a print
            print("Finishing this step and saving; Ctrl-C again stops at once.", file=sys.__stderr__)
        elif number == signal.SIGINT and now - self._asked_at > _ONE_PRESS_S:
            raise KeyboardInterrupt

    # -- the training loop ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reached = self.until is not None and state.global_step == self.until < state.max_steps
        if _anywhere(self._asked_at is not None or reached, args):
            self._saving = control.should_save = True
            args.save_only_model = False  # or nothing could resume from it
            if args.save_strategy == SaveStrategy.BEST:  # would save after a new best evaluation only
                args.save_strategy = SaveStrategy.STEPS

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._saving:
            kind = Paused if self._asked_at is None else Stopped
            raise kind(
                f"Stopped at step {state.global_step}: saved {self.output_dir}/checkpoint-{state.global_step}. "
                "The same command with --resume continues."
            )


def _anywhere(asked: bool, args: Any) -> bool:
    """True if any process was asked to stop: all must stop after the same step."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor(float(asked), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


# -- the best model, and early stopping ---------------------------------------------------------------------------


def best_model_callbacks(options: RunOptions) -> list[TrainerCallback]:
    """The callbacks that watch `metric_for_best_model`."""
    patience = options.early_stopping_patience
    early = [] if patience is None else [EarlyStop(patience, options.early_stopping_threshold)]
    return [KnownMetric(), *early]


class KnownMetric(TrainerCallback):
    """Refuses a `metric_for_best_model` that no evaluation has, at the first one: of a fresh run, before step 1."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        asked = args.metric_for_best_model
        if asked is None or not metrics or _logged(asked) in metrics:
            return
        known = [name.removeprefix("eval_") for name in metrics if not name.endswith(("_runtime", "_per_second"))]
        raise RecipeError(
            f"`metric_for_best_model: {asked}` is no metric of this run: write one of "
            f"{', '.join(name for name in known if name not in ('epoch', 'num_tokens'))}."
        )


class EarlyStop(EarlyStoppingCallback):
    """transformers' early stopping. A resumed run has waited as long as the one it continues.

    transformers restores callbacks only under `restore_callback_states_from_checkpoint`, and then with the patience of
    the old recipe. A run that had stopped makes no step more, unless its patience was raised.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        for one in saved if isinstance(saved, list) else [saved]:
            if one is not None:
                self.early_stopping_patience_counter = one["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def how_it_ended(trainer: Any) -> Iterator[str]:
    """Sentences on an early stop, and on the weights that a run ends with if they are not the last."""
    args, state = trainer.args, trainer.state
    if args.metric_for_best_model is None:
        return
    best = f"{_logged(args.metric_for_best_model)} was best at step {state.best_global_step}"
    if state.global_step < state.max_steps:
        yield f"Stopped early at step {state.global_step:,} of {state.max_steps:,}: {best} ({state.best_metric:.4g})."
    step = step_of_weights(trainer)
    if step != state.global_step:
        yield f"The model is that of step {step:,}: {best}."


def step_of_weights(trainer: Any) -> int:
    """The optimizer step of the weights that a run ends with."""
    state = trainer.state
    loaded = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return int(str(state.best_model_checkpoint).rpartition("-")[2]) if loaded else int(state.global_step)


def _logged(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"
