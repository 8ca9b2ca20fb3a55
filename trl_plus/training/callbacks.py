"""What a run records while it trains. Imported only when a run starts, since it needs transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from transformers import ProgressCallback, TrainerCallback

from trl_plus.runs.journal import Journal


class MetricsFile(TrainerCallback):
    """Writes every log event as one line of `metrics.jsonl`, on the main process.

    A resumed run goes on with the lines up to its checkpoint; what was logged after it is written again.
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
    """Tells the journal at which optimizer step the run is."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.training(state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.step = state.global_step + 1

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.step = state.global_step


class AlreadyFinished(TrainerCallback):
    """Says of a resumed run that no step is left. Put after what can stop the training before its first step."""

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
