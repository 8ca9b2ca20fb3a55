"""Trainable weights outside the adapter of a PEFT model: biases, norms that were unfrozen, embeddings.

PEFT trains them and writes only some of them into the adapter's file. Switching the adapter off does not undo them.
"""

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from trl_plus.trainers.adapters import adapter_weights
from trl_plus.trainers.reference import OwnReference, counted
from trl_plus.upstream.models import adapter_file, is_peft

logger = logging.getLogger("trl_plus")
FILE = "outside_adapter.safetensors"  # beside an adapter whose file does not hold them


def unsaved(model: Any) -> dict[str, Tensor]:
    """Trainable weights outside the adapters that PEFT writes nowhere, by their names in the PEFT model."""
    mine = adapter_weights(model)
    outside = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in mine}
    if not outside:
        return {}
    saved: set[str] = set()
    for adapter in model.peft_config:
        saved |= adapter_file(model, adapter).keys()
    adapters = set(model.peft_config)
    bare = {n: ".".join(part for part in n.split(".") if part not in adapters) for n in outside}
    return {n: p for n, p in outside.items() if not {n, bare[n]} & saved}


def read(model: Any, folder: str | Path) -> None:
    """Puts the weights of a folder's FILE into a PEFT model, if there is one.

    Raises:
        ValueError: the model has no such weights.
    """
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    if not path.is_file():
        return
    unexpected = model.load_state_dict(load_file(path), strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{path} holds {unexpected[0]}, which the model lacks: name the model that it was trained on.")


class OutsideWeights:
    """The weights of a run that are trained outside its adapter: kept out of the reference, saved and read again.

    The methods take the policy, which an engine may have wrapped since.

    Args:
        own_reference: the policy as its own reference, if it is that.
    """

    def __init__(self, own_reference: OwnReference | None, args: Any, accelerator: Accelerator) -> None:
        self._reference, self._args, self._accelerator = own_reference, args, accelerator
        self._names: tuple[str, ...] = ()

    def begin_training(self, model: Any) -> None:
        """Weights that were unfrozen since the trainer was built still have their first values."""
        if self._reference is not None:
            self._reference.keep()
        self.check(model)

    def check(self, model: Any) -> None:
        """Refuses what cannot be kept apart from the reference, and says which weights PEFT does not save."""
        if not is_peft(model):
            return
        kept = list(self._reference.first) if self._reference is not None else []
        if kept and self.shards_weights():
            raise ValueError(
                f"FSDP and DeepSpeed ZeRO-3 shard the weights, so the first values of {counted(kept)} cannot be put "
                "back for the reference. Fix: a LoRA adapter with `bias='none'` and nothing unfrozen outside it "
                "(`modules_to_save` trains whole modules), a `ref_model`, or DDP or ZeRO-2."
            )
        names = tuple(unsaved(model))
        if names and names != self._names and self._accelerator.is_main_process:
            logger.warning(
                "PEFT does not save %s outside the adapter: they are written to %s beside it, which `PeftModel` does "
                "not read. Name their modules in `modules_to_save` to have them in the adapter's file.",
                counted(list(names)),
                FILE,
            )
        self._names = names

    def shards_weights(self) -> bool:
        """True if the engine cuts each weight into parts."""
        plugin = self._args.deepspeed_plugin
        fsdp = getattr(self._accelerator.state, "fsdp_plugin", None) is not None
        return fsdp or (plugin is not None and plugin.zero_stage == 3)

    def write(self, model: Any, folder: str | Path) -> None:
        """Writes FILE beside the adapter in `folder`, if there is anything to write."""
        from safetensors.torch import save_file

        if self._names and not self.shards_weights():
            tensors = {n: p.detach().cpu().contiguous().clone() for n, p in unsaved(model).items()}
            save_file(tensors, Path(folder) / FILE)

    def read(self, model: Any, folder: str | Path) -> None:
        """Puts the weights of a checkpoint's FILE into the model. Raises a ValueError if it is needed and missing."""
        if self._names and not self.shards_weights():
            if not (Path(folder) / FILE).is_file():
                raise ValueError(
                    f"{folder} does not hold {counted(list(self._names))} outside the adapter, so the run cannot go "
                    f"on from it: {FILE} is missing. Fix: start anew, or freeze them."
                )
            read(model, folder)
