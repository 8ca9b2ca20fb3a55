"""The row layout of a run: the fastest that is proved right at its first batch, or the one that was asked for.

The first step also checks that a row does not depend on the rows beside it.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, reduce
from torch import Tensor

from trl_plus.forward.attention import OLDEST
from trl_plus.forward.attention.interface import name_eager_attention
from trl_plus.forward.layout_proof import TOLERANCE, TOLERANCE_16_BIT, in_16_bits, reason_against
from trl_plus.forward.layouts import Plan, count_rows, rows_of_batch
from trl_plus.forward.packing import Planner, RowLayout, in_short, recoverable, unknown_inputs
from trl_plus.forward.score import model_inputs, score
from trl_plus.trainers.adapters import needs_plain_rows
from trl_plus.trainers.checkpoints import untouched_random_state
from trl_plus.trainers.reference import ROUNDING_16_BIT
from trl_plus.upstream.models import base_model, is_peft, without_checkpointing

# -- a check at the first step that a row's log-probabilities do not depend on the rows beside or before it ---------
#
# Exact steps, `eval_loss` and a precomputed reference all rest on rows that do not. Batch normalisation, experts with a
# capacity, buffers that grow, noise in training and attention that reads the padded length break it.


logger = logging.getLogger("trl_plus")
FASTEST = "packed"


class RowLayouts:
    """The layouts of the models of a run, policy first.

    The first batch of each model decides. `layout: auto` goes on with plain rows where the layout is not proved right,
    and says why; a layout that was asked for by name and cannot work is a ValueError.

    A kernel may fail later, with longer rows than those of the proof. `auto` then repeats the micro-batch on plain rows
    and stays with them, on all processes from the next step on. An error of the backward pass makes it repeat the
    micro-batches of the step, in a run of one process. Other processes wait for gradients or weights by then, so under
    several the error is raised, as it is for a layout that was asked for by name.

    Args:
        args: the training configuration, of which `layout` is read.
        models: policy and reference, which carry their fused LM heads; with their PEFT wrappers.

    Attributes:
        of_models: the layout of each model; empty if rows are as they are for the whole run.
        planner: makes the plans of a step.
        in_backward: whether the last loss was computed, so that an error comes from its backward pass.
    """

    def __init__(self, args: Any, accelerator: Accelerator, models: list[Any]) -> None:
        self._args, self._accelerator = args, accelerator
        self.wanted: str = getattr(args, "layout", "auto")
        self.of_models: tuple[RowLayout, ...] = ()
        self.planner = Planner()
        self.in_backward = False
        self._failed: str | None = None  # why a kernel failed in this process after its layout was proved right
        self._said: set[str] = set()
        if self.wanted == "rows":
            return
        reason, causal = reason_of_run(models[0], args), [base_model(model) for model in models]
        for model in causal:
            reason = reason or name_eager_attention(model)
        if reason is not None:
            self._fall_back(reason)
            return
        share = not drops(models[0])
        if not share and accelerator.is_main_process:
            logger.warning(
                "Dropout is on: chosen and rejected draw it apart, so each computes the prompt. "
                "`disable_dropout: true` computes it once."
            )
        self.of_models = tuple(RowLayout(model, "rows", share, self.planner) for model in causal)
        for row_layout in self.of_models:
            row_layout.before_batch = self._decide

    @property
    def plan(self) -> Plan | None:
        """The plan of the policy's last pass; None if its rows were as they are."""
        return self.of_models[0].plan if self.of_models else None

    @contextmanager
    def off(self) -> Iterator[None]:
        """Rows as they are; the first batch that decides is still to come."""
        with ExitStack() as stack:
            for row_layout in self.of_models:
                stack.enter_context(row_layout.using("rows"))
                stack.callback(setattr, row_layout, "before_batch", row_layout.before_batch)
                row_layout.before_batch = None
            yield

    def _decide(self, row_layout: RowLayout, batch: dict[str, Any], labels: Tensor) -> None:
        """At the first batch of a model. Every process comes here at its first batch, and all take the same layout."""
        row_layout.before_batch = None
        layout = FASTEST if self.wanted == "auto" else self.wanted
        # The model before this one may have failed meanwhile, in this process or in another one
        if self._may_fail and (cause := agree(self._failed, self._accelerator)) is not None:
            self._all_leave(cause)
            return
        reason = reason_against(row_layout, layout, batch, labels, partial(agree, accelerator=self._accelerator))
        if reason is None:
            row_layout.layout = layout
            row_layout.on_failure = self._repeat_on_rows
        else:
            self._fall_back(reason)

    def _fall_back(self, reason: str) -> None:
        if self.wanted != "auto":
            raise ValueError(
                f"`layout: {self.wanted}` does not work here: {reason}. Set `layout: auto` or `layout: rows`."
            )
        if self._accelerator.is_main_process and reason not in self._said:
            self._said.add(reason)
            logger.warning("Rows are padded and prompts computed twice (`layout: rows`): %s.", reason)

    # -- a kernel that fails later ------------------------------------------------------------------------------------

    def _repeat_on_rows(self, row_layout: RowLayout, error: Exception) -> None:
        """After an error of a forward pass on a layout: returns if the pass can be repeated on plain rows."""
        cause = f"a later micro-batch failed ({in_short(error)})"
        if self.wanted != "auto":
            raise RuntimeError(f"`layout: {self.wanted}` does not work here: {cause}. Set `layout: rows`.") from error
        if self._accelerator.num_processes > 1 and self._weights_are_sharded():
            # The other processes are in the middle of a pass, and gather weights with this one
            raise RuntimeError(f"The packed layout does not work here: {cause}. Set `layout: rows`.") from error
        self._failed = cause
        self._leave(cause)

    def _leave(self, cause: str) -> None:
        """Take plain rows in this process. A model whose layout is still to be decided decides with all processes."""
        for row_layout in self.of_models:
            row_layout.layout = "rows"
        logger.warning("Rows are padded and prompts computed twice from here on (`layout: rows`): %s.", cause)

    def _weights_are_sharded(self) -> bool:
        plugin = getattr(self._args, "deepspeed_plugin", None)
        return self._accelerator.distributed_type == DistributedType.FSDP or getattr(plugin, "zero_stage", 0) == 3

    def failed_backward(self, error: Exception) -> bool:
        """True if an error of a training step is one of a backward pass on a layout, which plain rows may not have.

        Takes plain rows then. The gradients of the step are incomplete: its micro-batches have to be repeated.

        Raises:
            RuntimeError: it cannot be repeated here.
        """
        deepspeed = self._accelerator.distributed_type == DistributedType.DEEPSPEED
        laid_out = any(row_layout.plan is not None for row_layout in self.of_models)
        if deepspeed or not laid_out or not self.in_backward or not recoverable(error):
            return False
        cause = f"a backward pass failed ({in_short(error)})"
        if self.wanted != "auto" or self._accelerator.num_processes > 1:
            raise RuntimeError(
                f"The step cannot be made on packed rows: {cause}. Set `layout: rows` and resume the run."
            ) from error
        self._all_leave(cause)
        return True

    # -- plans of a whole step ----------------------------------------------------------------------------------------

    def plan_step(self, batches: list[dict[str, Any]]) -> None:
        """Plans the micro-batches of a step. The one wait for the device is here, before the first forward pass."""
        if not self.plans_ahead or any(not isinstance(batch.get("completion_mask"), Tensor) for batch in batches):
            if self._may_fail:
                self.see_failures(self.failures())
            return
        rows = [rows_of_batch(batch) for batch in batches]
        counts, flags = count_rows(rows, self.failures())
        if not self.see_failures(flags):
            first = self.of_models[0]
            self.planner.prepare(rows, counts, first.setting, rows[0].ids.device)

    @property
    def plans_ahead(self) -> bool:
        """True if all models have taken a layout other than `rows`, in all processes, as far as they have told."""
        taken = [row_layout.on_failure is not None for row_layout in self.of_models]
        return bool(taken) and all(taken)

    @property
    def _may_fail(self) -> bool:
        """True if a model has taken a layout other than `rows` and no process has told of a failure. Alike in all."""
        return any(row_layout.on_failure is not None for row_layout in self.of_models)

    def failures(self) -> list[Tensor]:
        """How many processes had a kernel that failed, to be read with the sizes of a step's rows. Collective."""
        if self._accelerator.num_processes == 1:
            return []
        failed = float(self._failed is not None)
        return [reduce(torch.full((), failed, device=self._accelerator.device), reduction="sum")]

    def see_failures(self, flags: list[Tensor]) -> bool:
        """Takes plain rows if some process did. Whether it is so."""
        if any(flags):
            self._all_leave("another process had to")
        return any(flags) or self._failed is not None

    def _all_leave(self, cause: str) -> None:
        """Take plain rows for good, in every process at once: all know it, and nobody asks again."""
        if self._failed is None:
            self._leave(cause)
        self._failed = None
        for row_layout in self.of_models:
            row_layout.on_failure = row_layout.before_batch = None


def agree(reason: str | None, accelerator: Accelerator) -> str | None:
    """This process's reason, or that of the first process that has one. Every process has to call it."""
    if accelerator.num_processes == 1:
        return reason
    reasons = [found for found in gather_object([reason]) if found is not None]
    if not reasons:
        return None
    return reason if reason is not None else f"another process finds that {reasons[0]}"


def reason_of_run(model: Any, args: Any) -> str | None:
    """Why a setting of a run rules out every layout but `rows`, as the rest of a sentence; None if none does."""
    if args.neftune_noise_alpha:
        return "the noise of neftune_noise_alpha depends on the padded length"
    if args.torch_compile:
        return "torch_compile would compile anew for every batch"
    devices = {p.device for p in base_model(model).parameters() if p.device.type not in ("cpu", "meta")}
    if len(devices) > 1:
        return "the layers are on several devices of one process. Fix: start a process per GPU with `--num-processes`"
    if devices and (old := too_old(devices.pop())):
        return old
    return needs_plain_rows(model) if is_peft(model) else None


def drops(model: Any) -> bool:
    """True if a model draws dropout in training; that of attention is a number in its configuration."""
    drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return drawn or bool(getattr(base_model(model).config, "attention_dropout", 0.0))


def too_old(device: torch.device) -> str | None:
    """Why a GPU has no kernel for layouts, or None."""
    if device.type != "cuda" or torch.version.hip:
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= OLDEST:
        return None
    have, need = (".".join(map(str, version)) for version in (found, OLDEST))
    return f"this GPU has compute capability {have}, and attention over a layout needs {need}"


SHORT = 64  # tokens of the row that is scored in different company


def warn_if_rows_depend(trainer: Any, model: Any, inputs: dict[str, Any]) -> None:
    """Looks at the first micro-batch that a trainer computes, before anything has left a state in the model."""
    why = why_rows_depend(trainer, model, inputs)
    if why is not None and trainer.accelerator.is_main_process:
        logger.warning(
            "Steps are not exact with this model: %s. Gradients, eval_loss and reference log-probabilities "
            "depend on how rows are batched; keep per_device_train_batch_size, per_device_eval_batch_size and "
            "gradient_accumulation_steps fixed between runs that you compare.",
            why,
        )


@torch.no_grad()
def why_rows_depend(trainer: Any, model: Any, inputs: dict[str, Any]) -> str | None:
    """The reason, as the rest of a sentence; None if rows are independent or that cannot be asked.

    Leaves no trace: random numbers and buffers are put back.
    """
    rows = short_and_long(inputs)
    if rows is None or drops(trainer.model) or trainer.args.neftune_noise_alpha:
        return None
    with (
        kept_buffers(trainer.model),
        untouched_random_state(),
        trainer.compute_loss_context_manager(),
        without_checkpointing(trainer.model, trainer.args),
        trainer.without_statistics(),
        trainer.layouts.off(),
    ):
        first = score(model, cut(rows, 1)).logps[0]
        before = random_state(trainer.args.device)
        again = score(model, cut(rows, 1)).logps[0]
        if not before.equal(random_state(trainer.args.device)):
            return "it draws random numbers in training (noise in a router or a layer)"
        beside = score(model, rows).logps[0, : len(first)]
        after = score(model, cut(rows, 1)).logps[0]
        half = in_16_bits(base_model(trainer.model))
    allowed = max(TOLERANCE_16_BIT, ROUNDING_16_BIT / len(first) ** 0.5) if half else TOLERANCE
    for other, why in (
        (again, "it keeps a state from one forward to the next, which changes a row by {:.2g} nats"),
        (after, "a longer row leaves a state behind, which changes the next row by {:.2g} nats"),
        (beside, "a longer row in the same batch changes a row by {:.2g} nats"),
    ):
        gap = (first - other).abs().float()
        found = float(gap.mean() if half else gap.max())
        if not found <= allowed:
            return why.format(found)
    return None


def short_and_long(inputs: dict[str, Any]) -> dict[str, Tensor] | None:
    """Two rows of a batch with every token scored: the beginning of its shortest, and its longest.

    None if the rows are not padded on the right, hold more than tokens, or are too short to have a beginning.
    """
    batch = model_inputs(inputs)
    if unknown_inputs(batch) or "input_ids" not in batch:
        return None
    ids, mask = batch["input_ids"], batch["attention_mask"]
    lengths = mask.sum(1)
    if not bool((mask.cumprod(1).sum(1) == lengths).all()) or int(lengths.min()) < 4:
        return None
    least, most = int(lengths.argmin()), int(lengths.argmax())
    short = min(SHORT, int(lengths[least]) // 2)
    ids, mask = ids[[least, most], : lengths[most]], mask[[least, most], : lengths[most]].clone()
    mask[0, short:] = 0
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": mask}


def cut(rows: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The first rows by themselves, without padding."""
    width = int(rows["attention_mask"][:count].sum(1).max())
    return {name: values[:count, :width] for name, values in rows.items()}


def random_state(device: torch.device) -> Tensor:
    """The states of torch's generators, of the CPU and the device, on the CPU."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


@contextmanager
def kept_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Every buffer has its value again afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
