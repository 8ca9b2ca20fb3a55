"""Time of a run from a few real steps of it on this machine, at two lengths."""

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainerCallback

from trl_plus.errors import DataError, RecipeError
from trl_plus.estimate.run import Estimate
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import build_trainer, check_data, load_processor

STEPS = 4  # of which the first is a warm-up


@dataclass(frozen=True)
class Calibration:
    """Measured steps, and the line through them.

    Attributes:
        points: (computed tokens of a micro-batch, seconds of its forward and backward pass), one per length.
        optimizer_seconds: seconds of clipping and the optimizer's update.
        run_seconds: of all optimizer steps, extrapolated; None if their number is not known.
    """

    points: tuple[tuple[float, float], ...]
    optimizer_seconds: float
    run_seconds: float | None

    def micro_batch_seconds(self, tokens: float) -> float:
        """Seconds at a number of computed tokens, on the line through both points."""
        (x0, y0), (x1, y1) = self.points
        if x1 == x0:
            return y1 * tokens / x1
        return max(0.0, y0 + (y1 - y0) * (tokens - x0) / (x1 - x0))


class _Clock(TrainerCallback):
    """Seconds of each step up to the optimizer, KTO's passes for z_ref among them, and of the optimizer.

    Attributes:
        trainer: set before training.
        plans: the row layout of each micro-batch, None for plain rows.
    """

    trainer: Any = None

    def __init__(self) -> None:
        self.passes: list[float] = []
        self.updates: list[float] = []
        self.plans: list[Any] = []
        self._mark = 0.0

    def _lap(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._lap()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.passes.append(self._lap())
        self.plans.append(next((row_layout.plan for row_layout in self.trainer.row_layouts), None))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.updates.append(self._lap())


def calibrate(estimated: Estimate) -> Calibration:
    """Load the model and make a few optimizer steps of one micro-batch, at half the longest length and at all of it.

    Nothing is kept: the steps run in a temporary folder. What is printed goes to standard error.

    Raises:
        RecipeError: the run would be on another device, or on several processes.
        DataError: the data is not local.
    """
    import torch

    plan = estimated.plan
    if plan.processes > 1:
        raise RecipeError("--calibrate measures one process: leave --num-processes and --accelerate-config out.")
    here = "cuda" if torch.cuda.is_available() and not plan.objects.recipe["use_cpu"] else "cpu"
    if here != estimated.device:
        raise RecipeError(f"--calibrate measures on this machine's {here}: leave --device {estimated.device} out.")
    if plan.data is None:
        raise DataError(f"--calibrate needs rows, and {plan.objects.data.label} is on the hub: name a local dataset.")
    longest = estimated.shape.tokens
    with contextlib.redirect_stdout(sys.stderr):
        (short, full) = (_measure(estimated, max(2, length)) for length in (longest // 2, longest))
    calibration = Calibration((short[:2], full[:2]), full[2], None)
    if plan.steps is None:
        return calibration
    passes = plan.objects.args.gradient_accumulation_steps * calibration.micro_batch_seconds(estimated.mean_tokens)
    return replace(calibration, run_seconds=plan.steps * (passes + full[2]))


def _measure(estimated: Estimate, max_length: int) -> tuple[float, float, float]:
    """Mean computed tokens, seconds of the passes and of the optimizer, of steps of one micro-batch."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = estimated.plan.objects.recipe
        changed = {
            "max_length": max_length, "max_steps": STEPS, "gradient_accumulation_steps": 1, "output_dir": folder,
            "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "tokens_per_device": None,
        }  # fmt: skip
        objects = build(replace(recipe, values={**recipe.values, **changed}))
        data, processor, clock = estimated.plan.data, load_processor(objects), _Clock()
        assert data is not None
        check_data(objects, data, processor)
        trainer = build_trainer(objects, replace(data, eval=None), processor, [clock])
        clock.trainer, collate, padded = trainer, trainer.data_collator, []

        def counted(rows: list[Any]) -> Any:
            batch = collate(rows)
            padded.append(batch["input_ids"].numel())
            return batch

        trainer.data_collator = counted
        trainer.train()
    # the data loader collates ahead of the steps
    tokens = [size if plan is None else plan.computed for plan, size in zip(clock.plans, padded, strict=False)]
    return statistics.mean(tokens[1:]), statistics.mean(clock.passes[1:]), statistics.median(clock.updates[1:])
