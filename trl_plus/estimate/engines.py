"""The part of a run on one of several devices: whole copies (DDP) or shares (FSDP, ZeRO). Rules, not measured."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from trl_plus.estimate.step import ADAPTER, GRADIENTS, WEIGHTS
from trl_plus.launch.engines import config_file
from trl_plus.launch.engines import read_config as read_engine

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


def read(accelerate_config: str | None, processes: int) -> Engine:
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
