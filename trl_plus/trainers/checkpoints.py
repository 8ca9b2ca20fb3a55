"""Checkpoints of our trainers: saved whole or not at all, and gone on from as if nothing had happened.

Works over what every engine writes, since the folder as a whole is renamed (tests/engines).
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trl_plus.runs import checkpoint_files as files
from trl_plus.runs.model_card import is_ours
from trl_plus.step.meters import UNSAVED
from trl_plus.trainers.card import CARD
from trl_plus.upstream.engines import check_fsdp2
from trl_plus.upstream.models import is_peft

logger = logging.getLogger("trl_plus")
PROGRESS = "trl_plus_state.json"


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Random numbers drawn inside leave no trace: an evaluation more or less does not change a run."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def refuse_evaluation_alone(trainer: Any) -> None:
    """Raises a ValueError where the engine can cut the weights for training only, and has not done so yet."""
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        engine = f"DeepSpeed ZeRO-{stage}" if stage < 3 and trainer.deepspeed is None else None
    else:
        cut = any(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters())
        engine = "FSDP2" if getattr(trainer.accelerator, "is_fsdp2", False) and not cut else None
    if engine is not None:
        raise ValueError(
            f"{engine} prepares a model for training only, so it cannot be evaluated before `train` was called: set "
            "`eval_on_start: true` to evaluate before the first step, or evaluate it in a process without an engine."
        )


class SafeCheckpoints:
    """Mixed in before a trainer and above `upstream.Seams`, whose hooks it overrides."""

    _resume_from: str | None = None  # until the first window of a resumed run has been drawn

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `train`. `resume_from_checkpoint=True` takes the newest complete checkpoint, with a warning
        that says why each incomplete one was passed over."""
        if getattr(self.accelerator, "is_fsdp2", False):
            kind = getattr(self.accelerator.state.fsdp_plugin, "state_dict_type", None)
            check_fsdp2(is_peft(self.model), getattr(kind, "name", None) == "SHARDED_STATE_DICT")
        if resume_from_checkpoint is True and os.path.isdir(self.args.output_dir):
            found = files.find(Path(self.args.output_dir))
            for reason in found.passed_over:
                logger.warning("Passed over %s.", reason)
            if found.newest is not None:
                resume_from_checkpoint = str(found.newest)
        self.forget_engine()
        self.random_state_is_loaded = False
        self._resume_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.use_weights(averaged=True)
        return output

    def forget_engine(self) -> None:
        """DeepSpeed's engine of an earlier `evaluate` or `train`: transformers would train with it, and it cannot."""
        if self.is_deepspeed_enabled and self.deepspeed is not None:
            self.deepspeed.destroy()
            self.model_wrapped, self.deepspeed = self.model, None

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_in_train:
            refuse_evaluation_alone(self)
        with untouched_random_state():
            return super().evaluate(*args, **kwargs)

    # -- saving -------------------------------------------------------------------------------------------------------

    def save_whole(self, folder: str, step: int) -> None:
        """Saves `checkpoint-<step>` in `folder` under a temporary name, and renames it when every process is done."""
        root, name = Path(folder), f"checkpoint-{step}"
        part, final = root / files.UNFINISHED / name, root / name
        if self.args.local_process_index == 0:  # of every machine: each may have a disk of its own
            for left in files.clear_unfinished(root):
                logger.warning("Deleted %s, which a killed run left half-written.", root / files.UNFINISHED / left)
        self.accelerator.wait_for_everyone()
        best = self.best_after_saving(root)
        self.write_checkpoint(str(part.parent))
        self.state.best_model_checkpoint = best
        progress = self.progress()  # a collective call
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(part / files.STATE))  # with the final name of the best checkpoint
            (part / PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")
            files.put_in_place(part, final)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and part.is_dir():  # another machine's disk, with its random states
            files.put_in_place(part, final)
        if self.args.push_to_hub:
            self.push_checkpoint(str(final))
        if self.args.should_save:
            files.rotate(root, final, best, self.args.save_total_limit)

    def best_after_saving(self, root: Path) -> str | None:
        """Where the best checkpoint is once this one has its name; transformers' rule."""
        best = self.state.best_global_step
        if self.args.save_strategy != "no" and best:
            path = root / f"checkpoint-{best}"
            if best == self.state.global_step or path.is_dir():
                return str(path)
        return self.state.best_model_checkpoint

    def best_model_is_loaded(self) -> None:
        """With a limit of 1 transformers then deletes all checkpoints but the best, file by file; here as wholes."""
        if self.args.save_total_limit != 1:
            return
        if self.args.should_save:
            for path in files.checkpoints(Path(self.args.output_dir)):
                if path.resolve() != Path(self.state.best_model_checkpoint).resolve():
                    files.remove(path)
        self.accelerator.wait_for_everyone()  # each process lists the checkpoints next

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does, with three differences.

        A schedule-free optimizer's averaged weights are saved, which are those that are evaluated. Under FSDP the model
        is saved whole, also if checkpoints are saved in shards: transformers would write nothing then. Shards of
        DeepSpeed are written elsewhere and then moved, as whole models are (`save_files`).
        """
        self.use_weights(averaged=True)
        if not _internal_call and self._ends_in_shards():
            self._save_shards(Path(output_dir or self.args.output_dir))
            if self.args.push_to_hub:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            return None
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled and not _internal_call else None
        kind = plugin.state_dict_type if plugin is not None else None
        if kind is None or kind.name == "FULL_STATE_DICT":
            return super().save_model(output_dir, _internal_call)
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            return super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(kind.name)

    def _ends_in_shards(self) -> bool:
        """Return True if DeepSpeed leaves the weights in shards. An adapter is gathered in any case."""
        if not self.is_deepspeed_enabled or self.deepspeed is None or is_peft(self.model):
            return False
        cut = self.deepspeed.zero_optimization_partition_weights()
        return cut and not self.deepspeed.zero_gather_16bit_weights_on_model_save()

    def _save_shards(self, folder: Path) -> None:
        part, first = folder / files.UNFINISHED / "model", self.args.local_process_index == 0
        if first:  # of every machine, as in `save_whole`
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.write_model(str(part))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.card_is_due(part, folder)
            files.merge_into(part, folder)
        self.accelerator.wait_for_everyone()
        if first:
            if part.is_dir():  # another machine's disk
                files.merge_into(part, folder)
            with suppress(OSError):  # it holds something else, or another process was faster
                part.parent.rmdir()
        self.accelerator.wait_for_everyone()

    def save_files(self, folder: str, write: Any) -> None:
        """A model saved beside other files: each of its files is written elsewhere and then moved."""
        part = Path(folder) / files.UNFINISHED / "model"
        if self.args.should_save:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        write(str(part))
        if self.args.should_save:
            self.card_is_due(part, Path(folder))
            files.merge_into(part, Path(folder))
            if not any(part.parent.iterdir()):
                part.parent.rmdir()

    def checkpoint_is_written(self, folder: str) -> None:
        self.write_card(Path(folder))

    def card_is_due(self, part: Path, folder: Path) -> None:
        """The card goes beside the model, in the place of PEFT's, unless somebody else has written one there."""
        if is_ours(folder / CARD):
            self.write_card(part)
        else:
            (part / CARD).unlink(missing_ok=True)

    # -- going on -----------------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What transformers does not save: the metrics since the last log, over all ranks, and the token count."""
        sums = self._meters["train"].read(self.accelerator)
        meters = {name: [r.total, r.weight] for name, r in sums.items() if name not in UNSAVED}
        return {"meters": meters, **self.logging_state(), **self.skips()}

    def go_on(self) -> None:
        """Before the first window of a resumed run is looked at.

        transformers restores the random state only after that window was drawn, KTO's pass over it included.
        """
        checkpoint, self._resume_from = self._resume_from, None
        if checkpoint is None:
            return
        self.load_random_state(checkpoint)  # nothing where transformers has, at the beginning of an epoch
        path = Path(checkpoint) / PROGRESS
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            mine = float(self.accelerator.is_main_process)  # the sums are of all ranks
            for name, (total, weight) in saved["meters"].items():
                self._meters["train"].restore(name, mine * total, mine * weight, self.args.device)
            self.restore_logging_state(saved)
            self.restore_skips(saved)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        at_its_end = 0 < self.state.max_steps <= self.state.global_step
        if at_its_end or self.control.should_training_stop:  # resumed there: transformers would make a step
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)
