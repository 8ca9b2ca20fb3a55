"""A check at the first step that a row's log-probabilities do not depend on the rows beside or before it.

Exact steps, `eval_loss` and a precomputed reference all rest on rows that do not. Batch normalisation, experts with a
capacity, buffers that grow, noise in training and attention that reads the padded length break it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.layout_proof import TOLERANCE, TOLERANCE_16_BIT, in_16_bits
from trl_plus.forward.packing import unknown_inputs
from trl_plus.forward.score import model_inputs, score
from trl_plus.trainers.checkpoints import untouched_random_state
from trl_plus.trainers.layouts import drops
from trl_plus.trainers.reference import ROUNDING_16_BIT
from trl_plus.upstream.models import base_model, without_checkpointing

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
