"""The needs of a recipe: memory by component, the largest micro-batch that fits, optimizer steps, and its time."""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import TrainerCallback

from trl_plus.errors import DataError, RecipeError
from trl_plus.estimate.measure import GIB, PROCESS, Engine, Measure, autocast, engine_of
from trl_plus.estimate.model import build_model, choose_layout, make_fake, read_config, weights_dtype
from trl_plus.estimate.step import Rows, Shape, sampled
from trl_plus.recipes.recipe import Recipe
from trl_plus.setup.machine_errors import memory_cures, overrides
from trl_plus.setup.objects import build
from trl_plus.setup.plan import Plan, plan
from trl_plus.setup.trainer import build_trainer, check_data, load_processor

BUDGETS = 32  # values of `tokens_per_device` that are told apart


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that stays within a limit.

    Attributes:
        limit: bytes.
        batch: `per_device_train_batch_size`; None if not even 1 fits.
        accumulation: `gradient_accumulation_steps` that keeps the effective batch.
        peak: bytes with that micro-batch (with 1 if none fits).
        tokens: the largest `tokens_per_device` that fits; None if rows are not packed, or nothing fits.
        tokens_peak: bytes with it.
        whole_step: the micro-batch is all rows of a device's step; more would be another effective batch.
        cures: if not even 1 fits, what lowers the peak, each alone; then all together.
    """

    limit: int
    batch: int | None
    accumulation: int | None
    peak: int
    tokens: int | None = None
    tokens_peak: int | None = None
    whole_step: bool = False
    cures: tuple["Cure", ...] = ()


@dataclass(frozen=True)
class Cure:
    """A change of the recipe, beside a micro-batch of 1, that lowers the peak.

    Attributes:
        overrides: as words of the command line; of several cures, all of their words.
        remark: what else the change does; "" for all cures together.
        peak: bytes with it.
    """

    overrides: str
    remark: str
    peak: int


@dataclass(frozen=True)
class Estimate:
    """Memory of one device at the worst micro-batch, and the size of the run.

    Attributes:
        device: "cpu" or "cuda".
        components: bytes by component at the peak; they add up to it.
        parameters: all parameters of the policy, and how many of them are trained.
        shape: the worst micro-batch.
        mean_tokens: tokens that an average `per_device_train_batch_size` of rows needs, padding included.
        notes: what the figures leave out or assume.
    """

    plan: Plan
    device: str
    engine: Engine
    components: dict[str, int]
    parameters: tuple[int, int]
    shape: Shape
    rows: Rows
    mean_tokens: float
    fit: Fit | None
    notes: list[str]

    @property
    def peak(self) -> int:
        """Bytes of one device at the worst moment."""
        return sum(self.components.values())

    @property
    def largest(self) -> str:
        """The component that dominates the peak; the process itself, which nothing lowers, aside."""
        return max((name for name in self.components if name != PROCESS), key=lambda name: self.components[name])


def estimate(
    recipe: Recipe,
    device: str | None = None,
    memory: float | None = None,
    accelerate_config: str | None = None,
    num_processes: int | None = None,
) -> Estimate:
    """Estimate a recipe without loading weights.

    Args:
        device: "cpu" or "cuda"; None for what this machine would use.
        memory: GiB that a device may use; None for this machine's GPU, and no limit if there is none.
        accelerate_config, num_processes: what the run would be launched with.

    Raises:
        RecipeError, DataError: the recipe would be refused, or the model's configuration cannot be read.
    """
    device = device or ("cuda" if torch.cuda.is_available() and not recipe["use_cpu"] else "cpu")
    found, measure = _estimate(recipe, device, accelerate_config, num_processes)
    limit = _limit(memory, device)
    if limit is None:
        return found
    args = found.plan.objects.args
    fit = _fit(limit, measure, args.per_device_train_batch_size, args.gradient_accumulation_steps)
    if fit.batch is None:
        cures = _cures(recipe, fit.peak, lambda changed: _estimate(changed, device, accelerate_config, num_processes))
        fit = replace(fit, cures=cures)
    return replace(found, fit=fit)


def _estimate(
    recipe: Recipe, device: str, accelerate_config: str | None, num_processes: int | None
) -> tuple[Estimate, Measure]:
    """An estimate without a limit, and what measures other micro-batches of it."""
    planned = plan(_buildable(recipe, device), accelerate_config, num_processes, elsewhere=True)
    objects = planned.objects
    config = read_config(objects)
    notes: list[str] = []
    rows = _rows(planned, notes)
    engine = engine_of(accelerate_config, planned.processes)
    fake = FakeTensorMode()
    amp, dtype = autocast(recipe, device), weights_dtype(objects, config)
    # an adapter is trained in float32 on weights that are in 16 bit already
    narrowed = amp is not None and engine.narrows and dtype == torch.float32 and not objects.model.use_peft
    model = build_model(objects, config, amp if narrowed else dtype)
    with fake:
        make_fake(model)
    chosen, share = choose_layout(objects, model, fake, device == "cuda", notes)
    rows = replace(rows, layout=chosen, share=share)
    measure = Measure(objects, device, engine, fake, model, rows, notes, None if narrowed else amp, narrowed)
    batch = objects.args.per_device_train_batch_size
    accumulation, budget = objects.args.gradient_accumulation_steps, objects.args.tokens_per_device
    # a budget fills micro-batches from the rows of the whole step
    micro = batch if budget is None else batch * accumulation
    found = Estimate(
        planned,
        device,
        engine,
        measure(micro, budget),
        measure.parameters,
        replace(rows, budget=budget).worst(micro),
        rows,
        rows.mean(batch),
        None,
        list(dict.fromkeys(notes)),
    )
    return found, measure


def _cures(recipe: Recipe, peak: int, measured: Callable[[Recipe], tuple[Estimate, Measure]]) -> tuple[Cure, ...]:
    """Changes that lower the peak of a micro-batch of 1: each alone, and all of them together."""
    values = {**recipe.values, "per_device_train_batch_size": 1, "tokens_per_device": None}
    smallest = replace(recipe, values=values)
    found, all_words = [], {}
    for words, remark in memory_cures(smallest):
        try:
            lowered = measured(replace(smallest, values={**values, **words}))[0].peak
        except (RecipeError, DataError):  # this machine or this model takes no such recipe
            continue
        if lowered < peak:
            found.append(Cure(overrides(words), remark, lowered))
            all_words |= words
    if len(found) > 1:
        together = measured(replace(smallest, values={**values, **all_words}))[0].peak
        found.append(Cure(overrides(all_words), "", together))
    return tuple(found)


def _limit(memory: float | None, device: str) -> int | None:
    if memory is not None:
        return int(memory * GIB)
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def _buildable(recipe: Recipe, device: str) -> Recipe:
    """The recipe without a precision that this machine would refuse, if it is estimated for another one."""
    if device == "cpu" or torch.cuda.is_available():
        return recipe
    values = {name: value for name, value in recipe.values.items() if name not in ("bf16", "fp16", "tf32")}
    return replace(recipe, values={**values, "bf16": False})


def _rows(planned: Plan, notes: list[str]) -> Rows:
    """Lengths of the rows: measured on the data if it is local, bounded by `max_length` elsewhere."""
    args, method = planned.objects.args, planned.objects.recipe.method
    sample = []
    if planned.data is not None:
        processor = load_processor(planned.objects)
        sample = sampled(planned.objects, planned.data.train, processor)
    if not sample:
        if args.max_length is None:
            raise RecipeError(
                "`max_length` is null and the data is not local, so no length is known: set `max_length`."
            )
        notes.append(f"The data was not read: every row is taken to fill max_length {args.max_length}.")
    longest = max((total for row in sample for total, _ in row.sides), default=0)
    full = getattr(args, "nll_scope", None) == "full"
    return Rows(
        sample,
        args.max_length or longest,
        2 if method.paired else 1,
        args.pad_to_multiple_of or 1,
        scores_prompt=full,
    )


def _fit(limit: int, measure: Measure, batch: int, accumulation: int) -> Fit:
    """The largest divisor of the rows of a device's step whose peak stays within the limit, and the largest budget."""
    rows = batch * accumulation
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    best, peak = _largest(limit, sizes, measure)
    fit = Fit(limit, best, None if best is None else rows // best, peak, whole_step=best == rows)
    if best is None or measure.rows.layout != "packed" or measure.engine.name.startswith("ZeRO"):
        return fit
    fewest, fits = (measure.rows.worst(size).computed for size in (1, best))
    if best == rows:
        return replace(fit, tokens=fits, tokens_peak=peak)
    too_many = measure.rows.worst(min(size for size in sizes if size > best)).computed
    budgets = list(range(fewest, too_many, max(1, too_many // BUDGETS)))
    tokens, peak = _largest(limit, budgets, lambda budget: measure(rows, budget))
    return replace(fit, tokens=tokens, tokens_peak=peak)


def _largest(limit: int, sizes: list[int], measure: Callable[[int], dict[str, int]]) -> tuple[int | None, int]:
    """The largest of ascending sizes whose peak stays within the limit, by bisection, and that peak.

    None with the peak of the smallest if none does.
    """
    low, high, peaks = 0, len(sizes), {}
    while low < high:
        middle = (low + high) // 2
        peaks[middle] = sum(measure(sizes[middle]).values())
        low, high = (middle + 1, high) if peaks[middle] <= limit else (low, middle)
    return (None, peaks[0]) if low == 0 else (sizes[low - 1], peaks[low - 1])


# -- time of a run from a few real steps of it on this machine, at two lengths --------------------------------------


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
