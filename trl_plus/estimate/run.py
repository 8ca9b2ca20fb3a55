"""What a recipe needs: memory by component, the largest micro-batch that fits, optimizer steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from trl_plus.estimate import engines, optimizers
from trl_plus.estimate.engines import ENGINE, OPTIMIZER, REFERENCE, Engine
from trl_plus.estimate.lengths import Rows, sampled
from trl_plus.estimate.model import build_model, make_fake, read_config, weights_dtype
from trl_plus.estimate.step import ADAPTER, GRADIENTS, WEIGHTS, Passes, Shape, peak_of_step
from trl_plus.loss_types import reads_only_rows
from trl_plus.recipes.dry_run import Plan, plan
from trl_plus.recipes.errors import RecipeError
from trl_plus.recipes.loading import load_processor
from trl_plus.recipes.objects import RunObjects
from trl_plus.recipes.recipe import Recipe

GIB = 2**30
PROCESS = "process"
# Bytes of a process before it holds a model. CPU: Python, torch and the other libraries (benchmarks/estimate.py).
# CUDA: context and cuBLAS workspaces, not measured by us.
PROCESS_BYTES = {"cpu": int(0.53 * GIB), "cuda": int(0.75 * GIB)}
# Room that CUDA's caching allocator leaves unused between blocks, as a share of what comes and goes; not measured
FRAGMENTATION = 0.05


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
    model = build_model(objects, config)
    with fake:
        make_fake(model)
    measure = _Measure(objects, recipe, config, device, engine, fake, model, rows, notes)
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


class _Measure:
    """The components of one device at the peak, for any micro-batch of a recipe."""

    def __init__(
        self, objects: RunObjects, recipe: Recipe, config: Any, device: str, engine: Engine, fake: Any, model: Any,
        rows: Rows, notes: list[str],
    ) -> None:  # fmt: skip
        self.objects, self.device, self.engine, self.fake, self.model = objects, device, engine, fake, model
        self.rows, self.notes = rows, notes
        self.amp = _autocast(recipe, device)
        self.dtype = weights_dtype(objects, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = (_elements(model), sum(p.numel() for p in trained))
        self.constant = self._constant(trained)

    def _constant(self, trained: list[Any]) -> dict[str, int]:
        """What lies in memory all the time beside the policy and its gradients."""
        args, optim = self.objects.args, str(getattr(self.objects.args.optim, "value", self.objects.args.optim))
        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        states = optimizers.state_bytes(optim, [(p, id(p) in embeddings) for p in trained])
        if states is None:
            self.notes.append(
                f"The states of `optim: {optim}` are not known here: counted as two float32 per parameter."
            )
            states = 8 * sum(p.numel() for p in trained)
        if optim.startswith("paged") and self.device == "cuda":
            self.notes.append("Paged optimizer states are counted in full; they can move to the machine's memory.")
        if args.activation_offloading:
            self.notes.append("`activation_offloading` is not modelled: activations are counted as if they stayed.")
        found = {PROCESS: PROCESS_BYTES[self.device], OPTIMIZER: states}
        if second_model(self.objects):
            found[REFERENCE] = sum(t.numel() * t.element_size() for t in _tensors(self.model))
        return found

    def passes(self) -> Passes:
        """How this recipe computes a step."""
        args, method = self.objects.args, self.objects.recipe.method
        own_head = not hasattr(args, "f_divergence_type") or not method.reference or reads_only_rows(args)
        return Passes(
            cuda=self.device == "cuda",
            own_head=own_head,
            autocast=self.amp,
            reference=method.reference and not args.precompute_ref_log_probs,
            accumulate=args.gradient_accumulation_steps > 1,
        )

    def __call__(self, batch: int) -> dict[str, int]:
        """Bytes by component with a micro-batch of `batch` rows."""
        passes = self.passes()
        if not self.objects.recipe.method.paired and self.objects.args.loss_type == "kto":
            passes = replace(passes, kl=self.rows.mismatched(batch))
        try:
            found = peak_of_step(self.fake, self.model, self.rows.worst(batch), passes)
        except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
            raise RecipeError(
                f"{type(self.model).__name__} decides by the data what it computes, so its step cannot be run without "
                "data: measure it with `trl-plus train` and `max_steps=2`."
            ) from error
        found = self._at_the_update(found)
        components = self.engine.share({**self.constant, **found})
        extra = self.engine.extra(self.model, (self.amp or self.dtype).itemsize)
        if self.device == "cuda":
            moving = sum(found.get(name, 0) for name in ("activations", "logits"))
            components["fragmentation"] = int(FRAGMENTATION * moving)
        return {**components, **({ENGINE: extra} if extra else {})}

    def _at_the_update(self, found: dict[str, int]) -> dict[str, int]:
        """The optimizer's update instead of the passes, where its intermediates need more memory than they do."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optim = str(getattr(self.objects.args.optim, "value", self.objects.args.optim))
        gradients = sum(p.numel() * p.element_size() for p in trained)
        update = {
            **{name: size for name, size in found.items() if name in (WEIGHTS, ADAPTER)},
            GRADIENTS: gradients,
            OPTIMIZER: self.constant[OPTIMIZER] + optimizers.transient_bytes(optim, trained, self.device == "cuda"),
        }
        passes = {OPTIMIZER: self.constant[OPTIMIZER], **found}
        return max(passes, update, key=lambda components: sum(components.values()))


def _elements(model: Any) -> int:
    from trl_plus.estimate.model import QuantizedLinear

    packed = sum(m.full_shape.numel() - m.weight.numel() for m in model.modules() if isinstance(m, QuantizedLinear))
    return sum(p.numel() for p in model.parameters()) + packed


def _tensors(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


def _autocast(recipe: Recipe, device: str) -> torch.dtype | None:
    if recipe["fp16"]:
        return torch.float16
    bf16 = recipe["bf16"]
    return torch.bfloat16 if bf16 or (bf16 is None and device == "cuda") else None


def second_model(objects: RunObjects) -> bool:
    """Whether a frozen copy of the weights lies beside the policy in every step."""
    args, method = objects.args, objects.recipe.method
    if not method.reference or objects.model.use_peft:
        return False
    # KTO draws mismatched rows anew in every step, so its trainer keeps the reference all the same
    return not args.precompute_ref_log_probs or (not method.paired and args.loss_type == "kto")


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
