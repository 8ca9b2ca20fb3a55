"""Checkpoints of our trainers: saved whole or not at all, and gone on from as if nothing had happened.

Works over what every engine writes, since the folder as a whole is renamed (tests/engines).
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trl_plus.runs import checkpoint_files as files
from trl_plus.runs.model_card import is_ours
from trl_plus.step.meters import UNSAVED
from trl_plus.trainers.card import CARD, write_card
from trl_plus.upstream.libraries import check_fsdp2
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


class Checkpoints:
    """The checkpoints of a trainer: how one is saved, and how a run goes on from one.

    Args:
        trainer: written and read are its model, states and files, by `Seams`' names of TRL's methods.

    Attributes:
        resume_from: a checkpoint, until the rows of the first step have been drawn.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.resume_from: str | None = None

    def begin_training(self, resume_from: Any) -> Any:
        """Return what transformers' `train` resumes from. True is the newest complete checkpoint of the output folder,
        with a warning that says why each incomplete one was passed over."""
        trainer = self._trainer
        if getattr(trainer.accelerator, "is_fsdp2", False):
            kind = getattr(trainer.accelerator.state.fsdp_plugin, "state_dict_type", None)
            check_fsdp2(is_peft(trainer.model), getattr(kind, "name", None) == "SHARDED_STATE_DICT")
        if resume_from is True and os.path.isdir(trainer.args.output_dir):
            found = files.find(Path(trainer.args.output_dir))
            for reason in found.passed_over:
                logger.warning("Passed over %s.", reason)
            if found.newest is not None:
                resume_from = str(found.newest)
        forget_engine(trainer)
        trainer.random_state_is_loaded = False
        self.resume_from = resume_from if isinstance(resume_from, str) else None
        return resume_from

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, folder: str, step: int) -> None:
        """Saves `checkpoint-<step>` in `folder` under a temporary name, and renames it when every process is done."""
        trainer, args = self._trainer, self._trainer.args
        wait = trainer.accelerator.wait_for_everyone
        root, name = Path(folder), f"checkpoint-{step}"
        part, final = root / files.UNFINISHED / name, root / name
        if args.local_process_index == 0:  # of every machine: each may have a disk of its own
            for left in files.clear_unfinished(root):
                logger.warning("Deleted %s, which a killed run left half-written.", root / files.UNFINISHED / left)
        wait()
        best = self._best_after_saving(root)
        trainer.write_checkpoint(str(part.parent))
        trainer.state.best_model_checkpoint = best
        progress = self._progress()  # a collective call
        wait()
        if args.should_save:
            trainer.state.save_to_json(str(part / files.STATE))  # with the final name of the best checkpoint
            (part / PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")
            files.put_in_place(part, final)
        wait()
        if args.local_process_index == 0 and part.is_dir():  # another machine's disk, with its random states
            files.put_in_place(part, final)
        if args.push_to_hub:
            trainer.push_checkpoint(str(final))
        if args.should_save:
            files.rotate(root, final, best, args.save_total_limit)

    def _best_after_saving(self, root: Path) -> str | None:
        """The place of the best checkpoint once this one has its name; transformers' rule."""
        state = self._trainer.state
        best = state.best_global_step
        if self._trainer.args.save_strategy != "no" and best:
            path = root / f"checkpoint-{best}"
            if best == state.global_step or path.is_dir():
                return str(path)
        return state.best_model_checkpoint

    def keep_best_only(self) -> None:
        """With a limit of 1 transformers then deletes all checkpoints but the best, file by file; here as wholes."""
        trainer = self._trainer
        if trainer.args.save_total_limit != 1:
            return
        if trainer.args.should_save:
            for path in files.checkpoints(Path(trainer.args.output_dir)):
                if path.resolve() != Path(trainer.state.best_model_checkpoint).resolve():
                    files.remove(path)
        trainer.accelerator.wait_for_everyone()  # each process lists the checkpoints next

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Under FSDP the model is saved whole, also if checkpoints are saved in shards, as transformers would not."""
        trainer = self._trainer
        plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
        kind = plugin.state_dict_type if plugin is not None else None
        if kind is None or kind.name == "FULL_STATE_DICT":
            yield
            return
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            yield
        finally:
            plugin.set_state_dict_type(kind.name)

    @property
    def ends_in_shards(self) -> bool:
        """True if DeepSpeed leaves the weights of the finished model in shards. An adapter is gathered in any case."""
        trainer = self._trainer
        if not trainer.is_deepspeed_enabled or trainer.deepspeed is None or is_peft(trainer.model):
            return False
        cut = trainer.deepspeed.zero_optimization_partition_weights()
        return cut and not trainer.deepspeed.zero_gather_16bit_weights_on_model_save()

    def save_shards(self, folder: Path) -> None:
        """Shards of DeepSpeed, written elsewhere and then moved, as whole models are. Every process calls it."""
        trainer, args = self._trainer, self._trainer.args
        wait = trainer.accelerator.wait_for_everyone
        part, first = folder / files.UNFINISHED / "model", args.local_process_index == 0
        if first:  # of every machine, as in `save`
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
        wait()
        trainer.write_model(str(part))
        wait()
        if args.should_save:
            self._put_card(part, folder)
            files.merge_into(part, folder)
        wait()
        if first:
            if part.is_dir():  # another machine's disk
                files.merge_into(part, folder)
            with suppress(OSError):  # it holds something else, or another process was faster
                part.parent.rmdir()
        wait()

    def save_files(self, folder: str, write: Callable[[str], None]) -> None:
        """A model saved beside other files: each of its files is written elsewhere and then moved."""
        part = Path(folder) / files.UNFINISHED / "model"
        saves = self._trainer.args.should_save
        if saves:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        write(str(part))
        if saves:
            self._put_card(part, Path(folder))
            files.merge_into(part, Path(folder))
            if not any(part.parent.iterdir()):
                part.parent.rmdir()

    def _put_card(self, part: Path, folder: Path) -> None:
        """The card goes beside the model, in the place of PEFT's, unless somebody else has written one there."""
        if is_ours(folder / CARD):
            write_card(self._trainer, part)
        else:
            (part / CARD).unlink(missing_ok=True)

    # -- going on -----------------------------------------------------------------------------------------------------

    def _progress(self) -> dict[str, Any]:
        """State that transformers does not save: metrics since the last log, over all ranks, and the token count."""
        trainer = self._trainer
        sums = trainer.meters["train"].read(trainer.accelerator)
        meters = {name: [r.total, r.weight] for name, r in sums.items() if name not in UNSAVED}
        return {"meters": meters, **trainer.logging_state(), **trainer.nonfinite.counts()}

    def go_on(self) -> None:
        """Before the first window of a resumed run is looked at.

        transformers restores the random state only after that window was drawn, KTO's pass over it included.
        """
        trainer = self._trainer
        checkpoint, self.resume_from = self.resume_from, None
        trainer.load_random_state(checkpoint)  # nothing where transformers has, at the beginning of an epoch
        path = Path(checkpoint) / PROGRESS
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            mine = float(trainer.accelerator.is_main_process)  # the sums are of all ranks
            for name, (total, weight) in saved["meters"].items():
                trainer.meters["train"].restore(name, mine * total, mine * weight, trainer.args.device)
            trainer.restore_logging_state(saved)
            trainer.nonfinite.restore(saved)


def forget_engine(trainer: Any) -> None:
    """DeepSpeed's engine of an earlier `evaluate` or `train`: transformers would train with it, and it cannot."""
    if trainer.is_deepspeed_enabled and trainer.deepspeed is not None:
        trainer.deepspeed.destroy()
        trainer.model_wrapped, trainer.deepspeed = trainer.model, None
