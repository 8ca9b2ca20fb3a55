"""Proof on the run's own rows that a layout gives the log-probabilities of plain rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.attention import proving
from trl_plus.forward.packing import (
    RowLayout,
    Unsupported,
    in_short,
    known_reason,
    plan_rows,
    recoverable,
    unknown_inputs,
)

# Largest difference of a log-probability in nats in float32; in 16 bits, where single tokens say little, of the mean
TOLERANCE, TOLERANCE_16_BIT = 1e-3, 5e-2
GROUPS = 2  # groups of rows that are scored both ways, besides one that is longer than the attention window


Agree = Callable[[str | None], str | None]


def reason_against(
    row_layout: RowLayout, layout: str, batch: dict[str, Any], labels: Tensor, agree: Agree = lambda reason: reason
) -> str | None:
    """Why this batch's model cannot use `layout`, as the rest of a sentence, or None where it is proved right.

    Draws no random numbers and leaves no trace: the model is in evaluation mode and without gradient.

    Args:
        agree: turns the reason of this process into that of all of them. It is called before the passes and after
            them, by every process: where the weights are cut across processes, all make the same passes or none.
    """
    reason = agree(_reason_of_batch(row_layout, layout, batch, labels))
    return reason if reason is not None else agree(_reason_of_passes(row_layout, layout, batch, labels))


def _reason_of_batch(row_layout: RowLayout, layout: str, batch: dict[str, Any], labels: Tensor) -> str | None:
    """The reason that can be found without a pass."""
    reason = known_reason(row_layout.model)
    if reason is not None:
        return reason
    unknown = unknown_inputs(batch) - {"shift_labels"}
    if unknown:
        return f"rows carry what no layout knows ({', '.join(sorted(unknown))})"
    if plan_rows(batch["input_ids"], batch["attention_mask"], layout) is None:
        return "rows are not padded on the right"
    return None


def _reason_of_passes(row_layout: RowLayout, layout: str, batch: dict[str, Any], labels: Tensor) -> str | None:
    """The reason that two passes on a few rows find."""
    few = few_rows(batch["input_ids"], batch["attention_mask"], labels, window_of(row_layout.model.config))
    try:
        gap = difference(row_layout, layout, *few)
    except Unsupported as error:
        return f"the model's attention {error}"
    except Exception as error:  # a kernel may fail with anything: what Triton, a compiler or a driver raises
        if not recoverable(error):
            raise
        return f"the model does not take it ({in_short(error)})"
    half = in_16_bits(row_layout.model)
    found = float(gap.mean() if half else gap.max()) if gap.numel() else 0.0
    if not found <= (TOLERANCE_16_BIT if half else TOLERANCE):
        return f"log-probabilities of the first rows differ by {found:.2g} nats"
    return None


@torch.no_grad()
def difference(row_layout: RowLayout, layout: str, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """(N,): by how much the log-probability of each labelled token differs between `rows` and `layout`."""
    before, found = row_layout.before_batch, []
    row_layout.before_batch = None
    try:
        with evaluating(row_layout.model), proving():
            for name in ("rows", layout):
                with row_layout.using(name):
                    # neither called as a module nor by its present `forward`: engines hang hooks on the one and
                    # contexts round the other, and this is inside a call already (autocast entered twice is never left)
                    output = row_layout.forward(
                        input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True
                    )
                found.append(output.log_probs.float())
    finally:
        row_layout.before_batch = before
    return (found[0] - found[1]).abs()[labels[:, 1:] != -100]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def few_rows(ids: Tensor, mask: Tensor, labels: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The shortest groups of a batch, and the shortest that is longer than the window: what a proof is made on.

    A batch of one row gets a second one that ends differently, so that there is something to keep apart.
    """
    if len(ids) == 1:
        ids = torch.cat([ids, torch.where(labels != -100, ids.roll(1, dims=1), ids)])
        mask, labels = mask.repeat(2, 1), labels.repeat(2, 1)
    each = 2 if len(ids) % 2 == 0 else 1
    longest = mask.sum(1).view(each, -1).amax(0).tolist()
    order = sorted(range(len(longest)), key=lambda group: longest[group])
    chosen = order[:GROUPS]
    beyond = [group for group in order if window is not None and longest[group] > window]
    if beyond and beyond[0] not in chosen:
        chosen.append(beyond[0])
    rows = torch.tensor([group + side * len(longest) for side in range(each) for group in chosen], device=ids.device)
    width = max(longest[group] for group in chosen)
    return ids[rows, :width], mask[rows, :width], labels[rows, :width]


def window_of(config: Any) -> int | None:
    return getattr(config, "sliding_window", None)


def in_16_bits(model: torch.nn.Module) -> bool:
    device = next(model.parameters()).device.type
    return torch.is_autocast_enabled(device) or any(
        p.is_floating_point() and p.element_size() < 4 for p in model.parameters()
    )
