"""Trainable weights outside the adapter of a PEFT model: biases, norms that were unfrozen, embeddings.

PEFT trains them and writes only some of them into the adapter's file. Switching the adapter off does not undo them.
"""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from trl_plus.trainers.adapters import adapter_weights
from trl_plus.trainers.own_reference import OwnReference, counted
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
    """Mixed in before `SafeCheckpoints`: such weights stay out of the reference, and are saved and read again."""

    own_reference: OwnReference | None = None  # of a PEFT model without a `ref_model`
    _outside: tuple[str, ...] = ()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.own_reference is not None:  # what was unfrozen since the trainer was built still has its first values
            self.own_reference.keep()
        self.check_outside()
        return super().train(*args, **kwargs)

    def check_outside(self) -> None:
        """Refuses what cannot be kept apart from the reference, and says which weights PEFT does not save."""
        if not is_peft(self.model):
            return
        kept = list(self.own_reference.first) if self.own_reference is not None else []
        if kept and self.shards_weights():
            raise ValueError(
                f"FSDP and DeepSpeed ZeRO-3 shard the weights, so the first values of {counted(kept)} cannot be put "
                "back for the reference. Fix: a LoRA adapter with `bias='none'` and nothing unfrozen outside it "
                "(`modules_to_save` trains whole modules), a `ref_model`, or DDP or ZeRO-2."
            )
        names = tuple(unsaved(self.model))
        if names and names != self._outside and self.accelerator.is_main_process:
            logger.warning(
                "PEFT does not save %s outside the adapter: they are written to %s beside it, which `PeftModel` does "
                "not read. Name their modules in `modules_to_save` to have them in the adapter's file.",
                counted(list(names)),
                FILE,
            )
        self._outside = names

    def shards_weights(self) -> bool:
        """Whether the engine cuts each weight into parts."""
        plugin = self.args.deepspeed_plugin
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    def write_outside(self, folder: str | Path) -> None:
        """Writes FILE beside the adapter in `folder`, if there is anything to write."""
        from safetensors.torch import save_file

        if self._outside and not self.shards_weights():
            tensors = {n: p.detach().cpu().contiguous().clone() for n, p in unsaved(self.model).items()}
            save_file(tensors, Path(folder) / FILE)

    def checkpoint_is_written(self, folder: str) -> None:
        super().checkpoint_is_written(folder)
        self.write_outside(folder)

    def save_files(self, folder: str, write: Any) -> None:
        def with_outside(part: str) -> None:
            write(part)
            if self.args.should_save:
                self.write_outside(part)

        super().save_files(folder, with_outside)

    def weights_are_loaded(self, folder: str) -> None:
        super().weights_are_loaded(folder)
        if self._outside and not self.shards_weights():
            if not (Path(folder) / FILE).is_file():
                raise ValueError(
                    f"{folder} does not hold {counted(list(self._outside))} outside the adapter, so the run cannot go "
                    f"on from it: {FILE} is missing. Fix: start anew, or freeze them."
                )
            read(self.model, folder)
