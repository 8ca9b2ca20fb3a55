"""What a recipe needs: memory by component, the largest micro-batch that fits, optimizer steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_plus.estimate import engines
from trl_plus.estimate.engines import Engine
from trl_plus.estimate.lengths import Rows, sampled
from trl_plus.estimate.measure import GIB, PROCESS, Measure, autocast
from trl_plus.estimate.model import build_model, make_fake, read_config, weights_dtype
from trl_plus.estimate.step import Shape
from trl_plus.recipes.dry_run import Plan, plan
from trl_plus.recipes.errors import RecipeError
from trl_plus.recipes.loading import load_processor
from trl_plus.recipes.recipe import Recipe


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that stays within a limit.

    Attributes:
        limit: bytes.
        batch: `per_device_train_batch_size`; None where not even 1 fits.
        accumulation: `gradient_accumulation_steps` that keeps the effective batch.
        peak: bytes with that micro-batch (with 1 where none fits).
    """

    limit: int
    batch: int | None
    accumulation: int | None
    peak: int


@dataclass(frozen=True)
class Estimate:
    """Memory of one device at the worst micro-batch, and the size of the run.

    Attributes:
        device: "cpu" or "cuda".
        components: bytes by component at the peak; they add up to it.
        parameters: all parameters of the policy, and how many of them are trained.
        shape: the worst micro-batch.
        mean_padded: padded tokens of an average micro-batch.
        notes: what the figures leave out or assume.
    """

    plan: Plan
    device: str
    engine: Engine
    components: dict[str, int]
    parameters: tuple[int, int]
    shape: Shape
    rows: Rows
    mean_padded: float
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
        memory: GiB that a device may use; None for this machine's GPU, and no limit where there is none.
        accelerate_config, num_processes: what the run would be launched with.

    Raises:
        RecipeError, DataError: the recipe would be refused, or the model's configuration cannot be read.
    """
    device = device or _device(recipe)
    planned = plan(_buildable(recipe, device), accelerate_config, num_processes)
    objects = planned.objects
    config = read_config(objects)
    notes: list[str] = []
    rows = _rows(planned, notes)
    engine = engines.read(accelerate_config, planned.processes)
    fake = FakeTensorMode()
    amp, dtype = autocast(recipe, device), weights_dtype(objects, config)
    # an adapter is trained in float32 on weights that are in 16 bit already
    narrowed = amp is not None and engine.narrows and dtype == torch.float32 and not objects.model.use_peft
    model = build_model(objects, config, amp if narrowed else dtype)
    with fake:
        make_fake(model)
    measure = Measure(objects, device, engine, fake, model, rows, notes, None if narrowed else amp, narrowed)
    batch = objects.args.per_device_train_batch_size
    components = measure(batch)
    limit = _limit(memory, device)
    return Estimate(
        planned,
        device,
        engine,
        components,
        measure.parameters,
        rows.worst(batch),
        rows,
        rows.mean_padded(batch),
        None if limit is None else _fit(limit, measure, batch, objects.args.gradient_accumulation_steps),
        list(dict.fromkeys(notes)),
    )


def _device(recipe: Recipe) -> str:
    return "cuda" if torch.cuda.is_available() and not recipe["use_cpu"] else "cpu"


def _limit(memory: float | None, device: str) -> int | None:
    if memory is not None:
        return int(memory * GIB)
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def _buildable(recipe: Recipe, device: str) -> Recipe:
    """The recipe without a precision that this machine would refuse, where it is estimated for another one."""
    if device == "cpu" or torch.cuda.is_available():
        return recipe
    values = {name: value for name, value in recipe.values.items() if name not in ("bf16", "fp16", "tf32")}
    return replace(recipe, values={**values, "bf16": False})


def _rows(planned: Plan, notes: list[str]) -> Rows:
    """Lengths of the rows: measured on the data where it is local, bounded by `max_length` elsewhere."""
    args, method = planned.objects.args, planned.objects.recipe.method
    sequences = []
    if planned.data is not None:
        processor = load_processor(planned.objects)
        unpair = planned.data.format.paired and not method.paired
        sequences = sampled(planned.data.train, processor, args.max_length, args.seed, unpair)
    if not sequences:
        if args.max_length is None:
            raise RecipeError(
                "`max_length` is null and the data is not local, so no length is known: set `max_length`."
            )
        notes.append(f"The data was not read: every row is taken to fill max_length {args.max_length}.")
    longest = max((total for row in sequences for total, _ in row), default=0)
    full = getattr(args, "nll_scope", None) == "full"
    return Rows(
        sequences,
        args.max_length or longest,
        2 if method.paired else 1,
        args.pad_to_multiple_of or 1,
        scores_prompt=full,
    )


def _fit(limit: int, measure: Callable[[int], dict[str, int]], batch: int, accumulation: int) -> Fit:
    """The largest divisor of the rows of a device's step whose peak stays within the limit, by bisection."""
    rows = batch * accumulation
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    low, high, peaks = 0, len(sizes), {}
    while low < high:
        middle = (low + high) // 2
        peaks[sizes[middle]] = sum(measure(sizes[middle]).values())
        low, high = (middle + 1, high) if peaks[sizes[middle]] <= limit else (low, middle)
    if low == 0:
        return Fit(limit, None, None, peaks[1])
    best = sizes[low - 1]
    return Fit(limit, best, rows // best, peaks[best])
