"""The components of one device at the peak, for any micro-batch of a recipe."""

from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from trl_plus.errors import RecipeError
from trl_plus.estimate import optimizers
from trl_plus.estimate.engines import ENGINE, OPTIMIZER, REFERENCE, Engine
from trl_plus.estimate.model import QuantizedLinear
from trl_plus.estimate.shapes import Rows, Shape
from trl_plus.estimate.step import ADAPTER, GRADIENTS, WEIGHTS, Passes, peak_of_step
from trl_plus.recipes.recipe import Recipe
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers.losses import computed_here

GIB = 2**30
PROCESS = "process"
# Bytes of a process beside the model. CPU: Python, torch and the other libraries 0.53, the trainer's own objects 0.03
# (benchmarks/estimate.py).
# CUDA: context and cuBLAS workspaces, not measured by us.
PROCESS_BYTES = {"cpu": int(0.56 * GIB), "cuda": int(0.75 * GIB)}
# Room that CUDA's caching allocator leaves unused between blocks, as a share of what comes and goes; not measured
FRAGMENTATION = 0.05


class Measure:
    """The components of one device at the peak, for any micro-batch of a recipe."""

    def __init__(
        self, objects: RunObjects, device: str, engine: Engine, fake: Any, model: Any, rows: Rows, notes: list[str],
        amp: torch.dtype | None, narrowed: bool,
    ) -> None:  # fmt: skip
        self.objects, self.device, self.engine, self.fake, self.model = objects, device, engine, fake, model
        self.rows, self.notes, self.amp, self.narrowed = rows, notes, amp, narrowed
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = (_elements(model), sum(p.numel() for p in trained))
        self.constant = self._constant(trained)

    def _constant(self, trained: list[Any]) -> dict[str, int]:
        """What lies in memory all the time beside the policy and its gradients."""
        args, optim = self.objects.args, str(getattr(self.objects.args.optim, "value", self.objects.args.optim))
        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        masters = [torch.empty(p.shape, device="meta") if self.narrowed else p for p in trained]
        states = optimizers.state_bytes(
            optim, [(m, id(p) in embeddings) for m, p in zip(masters, trained, strict=True)]
        )
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

    def passes(self, rows: Rows, batch: int) -> Passes:
        """How this recipe computes a step."""
        args, method = self.objects.args, self.objects.recipe.method
        own_head = not hasattr(args, "f_divergence_type") or not method.reference or computed_here(args)
        scores_reference = method.reference and not args.precompute_ref_log_probs
        z_ref: tuple[Shape, ...] = ()
        if not method.paired and args.loss_type == "kto":
            policy, both = rows.mismatched(batch)
            z_ref = (policy, both if scores_reference else policy)
        return Passes(
            cuda=self.device == "cuda",
            own_head=own_head,
            autocast=self.amp,
            reference=scores_reference and not z_ref,
            accumulate=args.gradient_accumulation_steps > 1 or rows.budget is not None,
            z_ref=z_ref,
        )

    def __call__(self, batch: int, budget: int | None = None) -> dict[str, int]:
        """Bytes by component with a micro-batch of `batch` rows, or of as many of them as `budget` tokens hold."""
        rows = replace(self.rows, budget=budget)
        passes = self.passes(rows, batch)
        try:
            found = peak_of_step(self.fake, self.model, rows.worst(batch), passes)
        except (DataDependentOutputException, DynamicOutputShapeException, RuntimeError) as error:
            raise RecipeError(
                f"The step of {type(self.model).__name__} cannot be run without data ({str(error).splitlines()[0]}): "
                "measure it with `trl-plus train` and `max_steps=2`."
            ) from error
        found = self._at_the_update(found)
        components = {**self.constant, **found}
        if self.narrowed:
            components = self.engine.with_masters(components, self.parameters[1])
        components = self.engine.share(components)
        extra = self.engine.extra(self.model, (self.amp or self.model.dtype).itemsize)
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
    packed = sum(m.full_shape.numel() - m.weight.numel() for m in model.modules() if isinstance(m, QuantizedLinear))
    return sum(p.numel() for p in model.parameters()) + packed


def _tensors(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


def autocast(recipe: Recipe, device: str) -> torch.dtype | None:
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
