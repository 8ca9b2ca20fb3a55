"""Which row layout a run uses: the fastest that is proved right at its first batch, or the one that was asked for."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object, reduce
from torch import Tensor

from trl_plus.forward.attention import OLDEST
from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.layout_proof import reason_against
from trl_plus.forward.packing import Planner, RowLayout, in_short, recoverable
from trl_plus.forward.planning import count_rows, rows_of_batch
from trl_plus.trainers.adapters import needs_plain_rows
from trl_plus.upstream.models import base_model, is_peft

logger = logging.getLogger("trl_plus")
FASTEST = "packed"


class RowLayouts:
    """Mixed in before a trainer: `install_layouts` lays out the rows of policy and reference.

    The first batch of each model decides. `layout: auto` goes on with plain rows where the layout is not proved right,
    and says why; a layout that was asked for by name and cannot work is a ValueError.

    A kernel may fail later, with longer rows than those of the proof. `auto` then repeats the micro-batch on plain rows
    and stays with them, on all processes from the next step on. An error of the backward pass makes it repeat the
    micro-batches of the step, in a run of one process. Other processes wait for gradients or weights by then, so under
    several the error is raised, as it is for a layout that was asked for by name.
    """

    row_layouts: tuple[RowLayout, ...] = ()
    planner: Planner
    _in_backward = False
    _failed: str | None = None  # why a kernel failed in this process after its layout was proved right

    def install_layouts(self) -> None:
        """On models that carry their fused LM heads, once."""
        wanted = getattr(self.args, "layout", "auto")
        if wanted == "rows":
            return
        reason = self._reason_of_run()
        models = [base_model(model) for model in (self.model, self.ref_model) if model is not None]
        for model in models:
            reason = reason or name_eager_attention(model)
        if reason is not None:
            self._fall_back(wanted, reason)
            return
        share = not self._drops()
        if not share and self.accelerator.is_main_process:
            logger.warning(
                "Dropout is on: chosen and rejected draw it apart, so each computes the prompt. "
                "`disable_dropout: true` computes it once."
            )
        self.planner = Planner()
        self.row_layouts = tuple(RowLayout(model, "rows", share, self.planner) for model in models)
        for row_layout in self.row_layouts:
            row_layout.before_batch = self._decide

    @contextmanager
    def without_layouts(self) -> Iterator[None]:
        """Rows as they are; the first batch that decides is still to come."""
        with ExitStack() as stack:
            for row_layout in self.row_layouts:
                stack.enter_context(row_layout.using("rows"))
                stack.callback(setattr, row_layout, "before_batch", row_layout.before_batch)
                row_layout.before_batch = None
            yield

    def _reason_of_run(self) -> str | None:
        """Why a setting of this run rules out every layout but `rows`."""
        if self.args.neftune_noise_alpha:
            return "the noise of neftune_noise_alpha depends on the padded length"
        if self.args.torch_compile:
            return "torch_compile would compile anew for every batch"
        model = base_model(self.model)
        devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
        if len(devices) > 1:
            return (
                "the layers are on several devices of one process. Fix: start a process per GPU with `--num-processes`"
            )
        if devices and (old := too_old(devices.pop())):
            return old
        return needs_plain_rows(self.model) if is_peft(self.model) else None

    def _drops(self) -> bool:
        """Whether the policy draws dropout; that of attention is a number in its configuration."""
        modules = self.model.modules()
        drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in modules)
        return drawn or bool(getattr(base_model(self.model).config, "attention_dropout", 0.0))

    def _decide(self, row_layout: RowLayout, batch: dict[str, Any], labels: Tensor) -> None:
        """At the first batch of a model. Every process comes here at its first batch, and all take the same layout."""
        row_layout.before_batch = None
        wanted = getattr(self.args, "layout", "auto")
        layout = FASTEST if wanted == "auto" else wanted
        if self.may_fail and (cause := self._agree(self._failed)) is not None:  # the model before this one
            self._all_leave_layout(cause)
            return
        reason = reason_against(row_layout, layout, batch, labels, self._agree)
        if reason is None:
            row_layout.layout = layout
            row_layout.on_failure = self._repeat_on_rows
        else:
            self._fall_back(wanted, reason)

    def _agree(self, reason: str | None) -> str | None:
        """This process's reason, or that of the first process that has one. Every process has to call it."""
        if self.accelerator.num_processes == 1:
            return reason
        reasons = [found for found in gather_object([reason]) if found is not None]
        if not reasons:
            return None
        return reason if reason is not None else f"another process finds that {reasons[0]}"

    def _fall_back(self, wanted: str, reason: str) -> None:
        if wanted != "auto":
            raise ValueError(f"`layout: {wanted}` does not work here: {reason}. Set `layout: auto` or `layout: rows`.")
        if self.accelerator.is_main_process and reason not in self._said:
            self._said.add(reason)
            logger.warning("Rows are padded and prompts computed twice (`layout: rows`): %s.", reason)

    # -- a kernel that fails later ------------------------------------------------------------------------------------

    def _repeat_on_rows(self, row_layout: RowLayout, error: Exception) -> None:
        """After an error of a forward pass on a layout: returns if the pass can be repeated on plain rows."""
        wanted = getattr(self.args, "layout", "auto")
        cause = f"a later micro-batch failed ({in_short(error)})"
        if wanted != "auto":
            raise RuntimeError(f"`layout: {wanted}` does not work here: {cause}. Set `layout: rows`.") from error
        if self.accelerator.num_processes > 1 and self._weights_are_sharded():
            # The other processes are in the middle of a pass, and gather weights with this one
            raise RuntimeError(f"The packed layout does not work here: {cause}. Set `layout: rows`.") from error
        self._failed = cause
        self._leave_layout(cause)

    def _leave_layout(self, cause: str) -> None:
        """Take plain rows in this process. A model whose layout is still to be decided decides with all processes."""
        for row_layout in self.row_layouts:
            row_layout.layout = "rows"
        logger.warning("Rows are padded and prompts computed twice from here on (`layout: rows`): %s.", cause)

    def _weights_are_sharded(self) -> bool:
        plugin = getattr(self.args, "deepspeed_plugin", None)
        return self.accelerator.distributed_type == DistributedType.FSDP or getattr(plugin, "zero_stage", 0) == 3

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except Exception as error:
            deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
            laid_out = any(row_layout.plan is not None for row_layout in self.row_layouts)
            if deepspeed or not laid_out or not self._in_backward or not recoverable(error):
                raise
            return self._repeat_step(model, error, num_items_in_batch)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self._in_backward = False
        loss = super().compute_loss(*args, **kwargs)
        self._in_backward = True
        return loss

    def _repeat_step(self, model: Any, error: Exception, totals: Any) -> Tensor:
        """After an error of a backward pass: the micro-batches of the step so far, once more on plain rows.

        The gradients of this step are incomplete, and those of the step before are applied and gone.
        """
        cause = f"a backward pass failed ({in_short(error)})"
        if getattr(self.args, "layout", "auto") != "auto" or self.accelerator.num_processes > 1:
            raise RuntimeError(
                f"The step cannot be made on packed rows: {cause}. Set `layout: rows` and resume the run."
            ) from error
        self._all_leave_layout(cause)
        model.zero_grad()
        done = self.forget_step()
        for batch in done:
            loss = super().training_step(model, batch, totals)
        return loss

    # -- plans of a whole step ----------------------------------------------------------------------------------------

    def plan_step(self, batches: list[dict[str, Any]]) -> None:
        """Plans the micro-batches of a step. The one wait for the device is here, before the first forward pass."""
        if not self.plans_ahead or any(not isinstance(batch.get("completion_mask"), Tensor) for batch in batches):
            if self.may_fail:
                self.see_failures(self.failures())
            return
        rows = [rows_of_batch(batch) for batch in batches]
        counts, flags = count_rows(rows, self.failures())
        if not self.see_failures(flags):
            first = self.row_layouts[0]
            self.planner.prepare(rows, counts, first.setting, rows[0].ids.device)

    @property
    def plans_ahead(self) -> bool:
        """Whether all models have taken a layout other than `rows`, in all processes, as far as they have told."""
        taken = [row_layout.on_failure is not None for row_layout in self.row_layouts]
        return bool(taken) and all(taken)

    @property
    def may_fail(self) -> bool:
        """True if a model has taken a layout other than `rows` and no process has told of a failure. Alike in all."""
        return any(row_layout.on_failure is not None for row_layout in self.row_layouts)

    def failures(self) -> list[Tensor]:
        """How many processes had a kernel that failed, to be read with the sizes of a step's rows. Collective."""
        if self.accelerator.num_processes == 1:
            return []
        failed = float(self._failed is not None)
        return [reduce(torch.full((), failed, device=self.args.device), reduction="sum")]

    def see_failures(self, flags: list[Tensor]) -> bool:
        """Takes plain rows if some process did. Whether it is so."""
        if any(flags):
            self._all_leave_layout("another process had to")
        return any(flags) or self._failed is not None

    def _all_leave_layout(self, cause: str) -> None:
        """Take plain rows for good, in every process at once: all know it, and nobody asks again."""
        if self._failed is None:
            self._leave_layout(cause)
        self._failed = None
        for row_layout in self.row_layouts:
            row_layout.on_failure = row_layout.before_batch = None

    @property
    def _said(self) -> set[str]:
        return self.__dict__.setdefault("_said_of_layouts", set())


def too_old(device: torch.device) -> str | None:
    """Why a GPU has no kernel for layouts, or None."""
    if device.type != "cuda" or torch.version.hip:
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= OLDEST:
        return None
    have, need = (".".join(map(str, version)) for version in (found, OLDEST))
    return f"this GPU has compute capability {have}, and attention over a layout needs {need}"
