"""The components of one device at the peak, for any micro-batch of a recipe and any engine.

An engine keeps whole copies on each device (DDP) or shares (FSDP, ZeRO). These are rules, not measurements.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from trl_plus.errors import RecipeError
from trl_plus.estimate.model import QuantizedLinear
from trl_plus.estimate.step import ADAPTER, GRADIENTS, WEIGHTS, Passes, Rows, Shape, peak_of_step
from trl_plus.launch.engines import config_file
from trl_plus.launch.engines import read_config as read_engine
from trl_plus.recipes.recipe import Recipe
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers.configs import computed_here

# Elements that ZeRO-3 keeps gathered at most (stage3_max_live_parameters of DeepSpeed)
_LIVE = 10**9
OPTIMIZER, REFERENCE, ENGINE = "optimizer", "reference", "engine"


@dataclass(frozen=True)
class Engine:
    """An engine, and which of weights, gradients and optimizer states it cuts across `processes`.

    Attributes:
        name: "one process", "DDP", "FSDP", "FSDP (gradients)", "ZeRO-1", "ZeRO-2" or "ZeRO-3".
        offloaded: labels that lie in the machine's memory instead.
    """

    name: str = "one process"
    processes: int = 1
    offloaded: frozenset[str] = frozenset()

    @property
    def cut(self) -> frozenset[str]:
        """Labels of which each device holds its share only."""
        stages = {
            "ZeRO-1": [OPTIMIZER],
            "ZeRO-2": [OPTIMIZER, GRADIENTS],
            "FSDP (gradients)": [OPTIMIZER, GRADIENTS, WEIGHTS, ADAPTER, REFERENCE],
        }
        everything = [OPTIMIZER, GRADIENTS, WEIGHTS, ADAPTER, REFERENCE]
        return frozenset(stages.get(self.name, [] if self.name in ("one process", "DDP") else everything))

    def share(self, components: dict[str, int]) -> dict[str, int]:
        """The components of one device."""
        kept = {label: size for label, size in components.items() if label not in self.offloaded}
        return {label: -(-size // self.processes) if label in self.cut else size for label, size in kept.items()}

    @property
    def narrows(self) -> bool:
        """True if mixed precision turns the model itself into 16 bit; autocast casts every weight anew instead."""
        return self.name.startswith(("FSDP", "ZeRO"))

    def with_masters(self, components: dict[str, int], trained: int) -> dict[str, int]:
        """The components of a narrowed model together with the float32 weights that the optimizer works on.

        FSDP keeps its shares of weights and gradients in float32 instead; DeepSpeed keeps float32 weights with the
        optimizer states, 4 bytes per trained parameter.
        """
        if self.name.startswith("ZeRO"):
            return {**components, OPTIMIZER: components[OPTIMIZER] + 4 * trained}
        wide = (WEIGHTS, GRADIENTS, REFERENCE)
        return {label: 2 * size if label in wide else size for label, size in components.items()}

    def extra(self, model: nn.Module, compute_bytes: int) -> int:
        """Bytes that the engine itself needs: buckets of gradients, or parameters gathered for their use.

        DDP keeps a copy of the trained gradients in its buckets. FSDP gathers two layers at a time and the rest
        (embeddings, output layer) for the whole step, or all of it if it does not reshard. ZeRO-3 keeps up to 10^9
        parameters gathered.
        """
        whole = sum(p.numel() for p in model.parameters())
        if self.name == "DDP":
            return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        if self.name == "FSDP (gradients)":
            return whole * compute_bytes
        if self.name == "ZeRO-3":
            return min(whole, _LIVE) * compute_bytes
        if self.name == "FSDP":
            layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
            return (whole - sum(layers) + 2 * max(layers, default=0)) * compute_bytes
        return 0


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=nn.ModuleList()))


def engine_of(accelerate_config: str | None, processes: int) -> Engine:
    """The engine that `--accelerate-config` and `--num-processes` name.

    Raises:
        RecipeError: the configuration is not one.
    """
    values: dict[str, Any] = {}
    if accelerate_config is not None:
        values = read_engine(config_file(accelerate_config), accelerate_config)
    kind = values.get("distributed_type")
    if kind == "FSDP":
        table = values.get("fsdp_config") or {}
        table = {key.removeprefix("fsdp_"): value for key, value in table.items()}
        reshards = table.get("reshard_after_forward", True) not in (False, "false", "SHARD_GRAD_OP", "NO_SHARD")
        offloaded = {WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER} if table.get("offload_params") else set()
        return Engine("FSDP" if reshards else "FSDP (gradients)", processes, frozenset(offloaded))
    if kind == "DEEPSPEED":
        table = values.get("deepspeed_config") or {}
        offloaded = {OPTIMIZER} if table.get("offload_optimizer_device") not in (None, "none") else set()
        if table.get("offload_param_device") not in (None, "none"):
            offloaded |= {WEIGHTS, ADAPTER}
        stage = table.get("zero_stage", 2)
        return Engine(f"ZeRO-{stage}" if stage else "DDP", processes, frozenset(offloaded))
    return Engine("DDP" if processes > 1 else "one process", processes)


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
        quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        packed = sum(module.full_shape.numel() - module.weight.numel() for module in quantized)
        self.parameters = (packed + sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trained))
        self.constant = self._constant(trained)

    def _constant(self, trained: list[Any]) -> dict[str, int]:
        """Bytes that are used all the time beside the policy and its gradients."""
        args, optim = self.objects.args, str(getattr(self.objects.args.optim, "value", self.objects.args.optim))
        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        masters = [torch.empty(p.shape, device="meta") if self.narrowed else p for p in trained]
        states = state_bytes(optim, [(m, id(p) in embeddings) for m, p in zip(masters, trained, strict=True)])
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
        """The passes of this recipe's step."""
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
        """The optimizer's update instead of the passes, if its intermediates need more memory than they do."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optim = str(getattr(self.objects.args.optim, "value", self.objects.args.optim))
        gradients = sum(p.numel() * p.element_size() for p in trained)
        update = {
            **{name: size for name, size in found.items() if name in (WEIGHTS, ADAPTER)},
            GRADIENTS: gradients,
            OPTIMIZER: self.constant[OPTIMIZER] + transient_bytes(optim, trained, self.device == "cuda"),
        }
        passes = {OPTIMIZER: self.constant[OPTIMIZER], **found}
        return max(passes, update, key=lambda components: sum(components.values()))


def _tensors(model: Any) -> list[Any]:
    return [*model.parameters(), *model.buffers()]


def autocast(recipe: Recipe, device: str) -> torch.dtype | None:
    if recipe["fp16"]:
        return torch.float16
    bf16 = recipe["bf16"]
    return torch.bfloat16 if bf16 or (bf16 is None and device == "cuda") else None


def second_model(objects: RunObjects) -> bool:
    """True if a frozen copy of the weights lies beside the policy in every step."""
    args, method = objects.args, objects.recipe.method
    if not method.reference or objects.model.use_peft:
        return False
    # KTO draws mismatched rows anew in every step, so its trainer keeps the reference all the same
    return not args.precompute_ref_log_probs or (not method.paired and args.loss_type == "kto")


# -- optimizer states, by the names that `optim` takes in transformers --------------------------------------------

# Blocks of bitsandbytes' 8-bit states; smaller tensors and embeddings keep float32 states
_BLOCK, _SMALLEST_8_BIT = 256, 4096
# optimizer: states of a parameter's size and dtype
_PLAIN = {
    "adamw_torch": 2, "adamw_torch_fused": 2, "adamw_torch_xla": 2, "adamw_torch_npu_fused": 2, "adamw_apex_fused": 2,
    "sgd": 0, "adagrad": 1, "rmsprop": 1,
}  # fmt: skip
# optimizer of bitsandbytes: float32 states, or 8-bit ones with a scale per block
_BNB = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1}
_BNB_NAMES = {
    "adamw_bnb_8bit": "adamw_8bit", "rmsprop_bnb": "rmsprop_32bit", "rmsprop_bnb_8bit": "rmsprop_8bit",
    "rmsprop_bnb_32bit": "rmsprop_32bit", "ademamix": "ademamix_32bit",
}  # fmt: skip


def state_bytes(optim: str, parameters: Iterable[tuple[Tensor, bool]]) -> int | None:
    """Bytes of the states of trained parameters after a step; None for an optimizer that is not known here.

    Args:
        optim: a value of `TrainingArguments.optim`.
        parameters: each trained parameter, and whether it is an embedding (which transformers keeps out of 8 bit).
    """
    if optim in _PLAIN:
        return sum(_PLAIN[optim] * p.numel() * p.element_size() for p, _ in parameters)
    if optim == "adafactor":
        return sum(_adafactor(p) for p, _ in parameters)
    kind, _, bits = _BNB_NAMES.get(optim, optim).removeprefix("paged_").rpartition("_")
    if kind not in _BNB or bits not in ("8bit", "32bit"):
        return None
    return sum(_bitsandbytes(p, _BNB[kind], bits == "8bit" and not embedding) for p, embedding in parameters)


def _adafactor(p: Tensor) -> int:
    """float32: a row and a column of second moments per matrix, all of them for a vector; no first moment."""
    if p.dim() < 2:
        return 4 * p.numel()
    rest = math.prod(p.shape[:-2])
    return 4 * rest * (p.shape[-2] + p.shape[-1])


def _bitsandbytes(p: Tensor, states: int, eight_bit: bool) -> int:
    if not eight_bit or p.numel() < _SMALLEST_8_BIT:
        return 4 * states * p.numel()
    scales = 4 * math.ceil(p.numel() / _BLOCK)
    return states * (p.numel() + scales)


def transient_bytes(optim: str, parameters: Iterable[Tensor], cuda: bool) -> int:
    """Bytes that the step itself needs for a moment: the update's intermediates if it is not fused.

    torch's optimizers update all tensors at once on CUDA (one intermediate of everything) and one by one elsewhere.
    """
    sizes = [p.numel() * max(p.element_size(), torch.float32.itemsize) for p in parameters]
    if not sizes or "fused" in optim or "bit" in optim:
        return 0
    return sum(sizes) if cuda and optim in ("adamw_torch", "rmsprop", "adagrad") else 2 * max(sizes)
