"""Losses and gradients that are not finite: the run stops before the optimizer step, or leaves it out.

The check costs one reduction over the gradients and one synchronisation per optimizer step. Which row it was is looked
up only after a fault.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from trl_plus.runs.checkpoint_files import find
from trl_plus.step.exact_step import StepTotals
from trl_plus.step.meters import Meters

logger = logging.getLogger("trl_plus")
SHOWN = 8  # rows that a message names
_KEPT = ("skips", "steps_since_log", "skips_since_log")


class NonFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite; the text names step, rows, what it was, and the fix."""


@dataclass
class Window:
    """One optimizer step.

    Attributes:
        batches: its micro-batches.
        losses: scalars, one for each time that the loss was computed.
        rows: (micro-batch, (B,) values of its rows), likewise.
        begun: micro-batches whose training step has begun; `current` is the one in the loss.
    """

    batches: list[dict[str, Any]] = field(default_factory=list)
    totals: StepTotals | None = None
    losses: list[Tensor] = field(default_factory=list)
    rows: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    loss_before: Tensor | None = None
    begun: int = 0
    current: dict[str, Any] | None = None


class NonFiniteSteps:
    """Checks every step of a trainer between its last backward pass and its optimizer step.

    Args:
        trainer: its `args`, `accelerator`, `state`, `model`, `train_dataset` and `data_collator` are read.
        meters: the metrics of training, which lose the part of a step that is left out.
        running_loss: the loss since the last log, likewise: transformers adds to the tensor in place.
    """

    def __init__(self, trainer: Any, meters: Meters, running_loss: Callable[[], Tensor]) -> None:
        self._trainer, self._meters, self._running_loss = trainer, meters, running_loss
        self._window: Window | None = None
        self.restart()

    def restart(self) -> None:
        """At the beginning of `train`."""
        self._skips = 0  # of the run, resumed or not
        self._steps_since_log = self._skips_since_log = 0  # likewise
        self._steps_here = self._skips_here = 0  # of this call of `train`, as `train_loss` is

    def counts(self) -> dict[str, int]:
        """The counts that a checkpoint keeps."""
        return {name: getattr(self, f"_{name}") for name in _KEPT}

    def restore(self, saved: dict[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, f"_{name}", saved.get(name, 0))

    # -- what a step tells --------------------------------------------------------------------------------------------

    def begin_step(self, batches: list[dict[str, Any]], totals: StepTotals | None) -> None:
        """The micro-batches of the next step, as they will be computed."""
        self._window = Window(list(batches), totals, loss_before=self._running_loss().clone())
        self._steps_here += bool(batches)
        self._steps_since_log += bool(batches)

    def begin_micro_batch(self) -> None:
        if self._window is not None:
            self._window.begun += 1

    @contextmanager
    def micro_batch(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Within this context the loss of these rows is computed; in an evaluation nothing is noted."""
        window = self._window if self._trainer.model.training else None
        if window is None:
            yield
            return
        window.current = inputs
        try:
            yield
        finally:
            window.current = None

    def watch_rows(self, values: Tensor) -> None:
        """Notes (B,) values of the current micro-batch's rows, which are not finite exactly if the row is at fault."""
        if self._window is not None and self._window.current is not None:
            self._window.rows.append((self._window.current, values.detach()))

    def loss_is_known(self, loss: Tensor, model: Any) -> None:
        """The loss of a micro-batch. DeepSpeed makes its step inside the last backward pass: it is checked before."""
        window = self._window if self._trainer.model.training else None
        if window is None:
            return
        window.losses.append(loss.detach())
        if self._steps_in_backward and window.begun == len(window.batches):
            self.check(model)

    def forget_step(self) -> list[dict[str, Any]]:
        """The micro-batches that the current step has begun; all that was noted of them is forgotten."""
        window = self._window
        begun = window.batches[: len(window.losses)]
        window.losses.clear()
        window.rows.clear()
        self._meters.rollback()
        return begun

    @property
    def _steps_in_backward(self) -> bool:
        """DeepSpeed makes its optimizer step inside the last backward pass: only the loss can be checked before."""
        return self._trainer.accelerator.distributed_type == DistributedType.DEEPSPEED

    # -- the check ----------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Before the optimizer step: stops the run or takes the step's gradients away if something is not finite."""
        window = self._window or Window()  # an override of `get_batch_samples` may draw batches by itself
        accelerator, device = self._trainer.accelerator, self._trainer.args.device
        values = [loss.float() for loss in window.losses]
        if window.totals is not None and window.totals.z_ref is not None:
            values.append(window.totals.z_ref.float())
        if accelerator.scaler is None:  # under fp16 the scaler expects infinite gradients, and skips them itself
            values.append(gradient_norm(model, device))
        if not values:
            return
        bad = (~torch.stack([value.to(device) for value in values]).isfinite()).sum()
        if accelerator.num_processes > 1:
            bad = accelerator.reduce(bad, reduction="sum")
        if bad:
            self._leave_out(model, self._describe(model, window))

    def norm_is_known(self, norm: Any) -> None:
        """Under DeepSpeed the step is made: a run stops before such weights are saved. Under fp16 a scaler skips it."""
        trainer = self._trainer
        if self._steps_in_backward and not trainer.args.fp16 and norm is not None and not math.isfinite(norm):
            raise NonFiniteError(
                f"Step {trainer.state.global_step + 1}: not finite: the gradient norm ({norm}). DeepSpeed has applied "
                f"it inside its backward pass, so the weights in memory are lost. {self._saved(lost=True)} {_CURE}."
            )

    def _leave_out(self, model: Any, what: str) -> None:
        """Stops, or takes away the step's gradients and its part of every metric."""
        args, accelerator = self._trainer.args, self._trainer.accelerator
        choice = getattr(args, "nonfinite", "stop")
        if choice != "skip" or self._steps_in_backward or self._window is None:
            no_skip = _NO_SKIP if self._steps_in_backward else _SKIP
            raise NonFiniteError(f"{what} {self._saved()} {_CURE}{no_skip}")
        cap = args.max_nonfinite_skips
        if self._skips >= cap:
            raise NonFiniteError(
                f"{what} max_nonfinite_skips ({cap}) steps were left out before. {self._saved()} {_CURE}{_SKIP}"
            )
        self._skips += 1
        self._skips_since_log += 1
        self._skips_here += 1
        for parameter in model.parameters():
            if accelerator.scaler is None:
                parameter.grad = None
            elif parameter.grad is not None:  # what makes the scaler leave out the step
                parameter.grad.fill_(float("nan"))
        self._meters.rollback()
        self._running_loss().copy_(self._window.loss_before)
        if accelerator.is_main_process:
            logger.warning("%s The step is left out (%d of at most %d).", what, self._skips, cap)

    def correct(self, logs: dict[str, float]) -> None:
        """Means of a log over the steps that were made, and how many were left out."""
        if "loss" in logs:
            made = self._steps_since_log - self._skips_since_log
            if self._skips_since_log:  # the mean over the steps that were made; none where none was
                if made:
                    logs["loss"] *= self._steps_since_log / made
                else:
                    del logs["loss"]
            if self._skips:
                logs["nonfinite_skips"] = self._skips
            self._steps_since_log = self._skips_since_log = 0
        if "train_loss" in logs and self._steps_here > self._skips_here:
            logs["train_loss"] *= self._steps_here / (self._steps_here - self._skips_here)

    # -- what the message says ----------------------------------------------------------------------------------------

    def _saved(self, lost: bool = False) -> str:
        trainer = self._trainer
        checkpoint = find(Path(trainer.args.output_dir)).newest if trainer.state.global_step else None
        if checkpoint is None and lost:
            return "No checkpoint was saved yet."
        if checkpoint is None:
            return "The weights are as they were before this step; no checkpoint was saved yet."
        return f"The last checkpoint is {checkpoint}, from which the run can be resumed."

    def _describe(self, model: Any, window: Window) -> str:
        found = culprits(window)
        if self._trainer.accelerator.num_processes > 1:
            found = gather_object(found)
        parts = []
        if window.totals is not None and window.totals.z_ref is not None and not window.totals.z_ref.isfinite():
            parts.append(f"KTO's z_ref ({window.totals.z_ref.item()})")
        if found:
            parts.append("the loss of " + self._name_rows(found))
        elif any(not loss.isfinite() for loss in window.losses):
            parts.append("the loss")
        if not found:  # the same on every process, so that all of them gather
            parts += self._bad_gradients(model, window)
        return f"Step {self._trainer.state.global_step + 1}: not finite: {'; '.join(parts) or 'the gradient norm'}."

    def _bad_gradients(self, model: Any, window: Window) -> list[str]:
        names = [n for n, p in model.named_parameters() if p.grad is not None and not local(p.grad).isfinite().all()]
        rows = [row for batch in window.batches for row in rows_of(batch, None)]
        if self._trainer.accelerator.num_processes > 1:  # each holds a part of the gradients under FSDP
            names, rows = list(dict.fromkeys(gather_object(names))), gather_object(rows)
        if not names:
            return []
        where = f", in a step on {self._name_rows(rows)}" if rows else ""
        more = f" and of {len(names) - 1} more parameters" if len(names) > 1 else ""
        return [f"the gradient of {names[-1]}{more}{where}"]

    def _name_rows(self, rows: list[tuple[str, list[list[int]]]]) -> str:
        shown, left = rows[:SHOWN], len(rows) - SHOWN
        dataset = self._trainer.train_dataset
        numbers = find_rows(dataset, self._trainer.data_collator, [tokens for _, tokens in shown])
        names = [
            f"{_numbered(number)} ({value + ', ' if value else ''}sha256 of its token ids {row_hash(tokens)})"
            for (value, tokens), number in zip(shown, numbers, strict=True)
        ]
        total = len(dataset) if hasattr(dataset, "__len__") else None
        of = f" of the {total} training rows as tokenized, counted from 0" if total is not None else ""
        return ", ".join(names) + (f" and {left} more" if left > 0 else "") + of


_CURE = "Look at these rows, lower learning_rate or max_grad_norm, or train in bf16 or float32 rather than fp16"
_SKIP = "; `nonfinite: skip` leaves such steps out."
_NO_SKIP = ". DeepSpeed applies a step inside its backward pass, so `nonfinite: skip` cannot leave it out."


def _numbered(numbers: list[int] | None) -> str:
    if numbers is None:
        return "a row of a stream"
    return ("row " if len(numbers) < 2 else "rows ") + (" and ".join(map(str, numbers)) or "of unknown number")


def local(gradient: Tensor) -> Tensor:
    """The part of a gradient that this process holds."""
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def gradient_norm(model: Any, device: Any) -> Tensor:
    """The L2 norm of the gradients that this process holds, as a scalar tensor on `device`."""
    gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).float().to(device)


def rows_of(batch: dict[str, Any], values: Tensor | None) -> list[tuple[str, list[list[int]]]]:
    """(value, token ids of each side) of the rows whose value is not finite; of all rows where there are no values."""
    count = len(batch["input_ids"]) // (1 if "label" in batch else 2)
    found = []
    for row in range(count):
        value = None if values is None else values.expand(count)[row].item()
        if value is None or not torch.isfinite(torch.tensor(value)):
            sides = range(row, len(batch["input_ids"]), count)
            tokens = [batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist() for i in sides]
            found.append(("" if value is None else str(value), tokens))
    return found


def culprits(window: Window) -> list[tuple[str, list[list[int]]]]:
    """The rows of this process whose own loss is not finite, each once."""
    found = {}
    for batch, values in window.rows:
        for value, tokens in rows_of(batch, values):
            found.setdefault(json.dumps(tokens), (value, tokens))
    return list(found.values())


def row_hash(tokens: list[list[int]]) -> str:
    """12 hex digits of the SHA-256 of a row's token ids as JSON: [prompt + chosen, prompt + rejected], or [row]."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:12]


def find_rows(dataset: Any, collator: Any, wanted: list[list[list[int]]]) -> list[list[int] | None]:
    """For each row its numbers in the dataset, several where rows are equal; None for a stream.

    The collator is asked, since it cuts rows to `max_length`.
    """
    columns = getattr(dataset, "column_names", None) or []
    if not hasattr(dataset, "__len__") or "prompt_ids" not in columns:
        return [None] * len(wanted)
    read = [name for name in columns if name.endswith(("_ids", "_context", "logps")) or name in ("label", "weight")]
    numbers: dict[str, list[int]] = {json.dumps(tokens): [] for tokens in wanted}
    for number, row in enumerate(dataset.select_columns(read)):
        ((_, tokens),) = rows_of(collator([row]), None)
        if json.dumps(tokens) in numbers:
            numbers[json.dumps(tokens)].append(number)
    return [numbers[json.dumps(tokens)] for tokens in wanted]
