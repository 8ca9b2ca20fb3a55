"""The totals of an optimizer step's effective batch, and the loss of a micro-batch as its exact share of them.

The loss of a step is a mean over its effective batch: sum_i w_i l_i / sum_i w_i over the rows of all micro-batches and
ranks, plus token means sum_i w_i nll_i / sum_i w_i n_i. Each micro-batch contributes its sums divided by these global
denominators, so the gradient does not depend on how the batch is cut, the last short window included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import SkipBatchSampler
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from trl_plus.forward.layouts import common_beginning

_TINY = torch.finfo(torch.float32).tiny

_COUNTED = ("completion_mask", "attention_mask", "weight")  # what totals are counted from
ADDED = "added"  # the meter of what overrides add to the loss of an evaluation


def loss_of(found: Any) -> Tensor:
    """The loss in what `compute_loss` returned: the loss alone, or the loss with the model's outputs."""
    return found[0] if isinstance(found, tuple) else found


def row_weights(batch: dict[str, Any]) -> Tensor:
    """(B,) float32: the `weight` column, or ones. B is the number of rows: pairs of a paired batch."""
    if "weight" in batch:
        return batch["weight"].float()
    rows = batch["input_ids"].size(0)
    if "label" not in batch:  # chosen and rejected of each pair are stacked
        rows //= 2
    return torch.ones(rows, device=batch["input_ids"].device)


def without_weightless_pairs(batch: dict[str, Any]) -> dict[str, Any]:
    """A paired batch without its pairs of weight zero: for a loss that is a plain mean over the rows it is given.

    Of nothing but such pairs the first stays, since every process makes its passes. Rows with images stay too: which
    of the pixels are whose is known to the model only.
    """
    weights = row_weights(batch)
    kept = (weights > 0).nonzero()[:, 0]
    if len(kept) == len(weights) or "pixel_values" in batch:
        return batch
    if not len(kept):
        kept = kept.new_zeros(1)
    rows = {len(weights): kept, 2 * len(weights): torch.cat([kept, kept + len(weights)])}
    return {name: value[rows[len(value)]] for name, value in batch.items()}


@dataclass(frozen=True)
class StepTotals:
    """Denominators of one optimizer step, over all of its micro-batches and ranks.

    Args:
        weight: scalar, the sum of row weights (the number of rows where there are none).
        tokens: scalar, the weighted number of tokens of the NLL term; zero for a loss without one.
        ranks: gradients are averaged over this many processes afterwards, which each share undoes.
        micro_batches: transformers divides the loss of a micro-batch by this number, which each share undoes.
        z_ref: scalar, KTO's reference point; None for other losses.
    """

    weight: Tensor
    tokens: Tensor
    ranks: int = 1
    micro_batches: int = 1
    z_ref: Tensor | None = None

    def share(self, losses: Tensor, weights: Tensor) -> Tensor:
        """This micro-batch's part of the weighted mean of `losses`, (B,), over the step's rows."""
        return self.ranks * self.micro_batches * (losses * weights).sum() / self.weight.clamp(min=_TINY)

    def token_share(self, nll: Tensor, weights: Tensor) -> Tensor:
        """This micro-batch's part of the token mean; `nll` (B,) is summed over each row's tokens."""
        return self.ranks * self.micro_batches * (nll * weights).sum() / self.tokens.clamp(min=_TINY)

    def __rtruediv__(self, other: Any) -> Any:
        raise TypeError(
            "`num_items_in_batch` holds the totals of the step and is not a number. Fix: return the mean over the "
            "micro-batch, as with TRL, or `self.exact_mean(values, inputs, num_items_in_batch)` of one value per row."
        )


def last_round(state: Any, ranks: int) -> tuple[int, int]:
    """How many rows are left for the last round of a data loader, and how many rows a full round has, over all ranks.

    Both are 0 or less where they are not known: for a stream, and where incomplete rounds are dropped. accelerate knows
    them of every loader but the one that a resumed run begins with, which skips the rounds that were made.

    Args:
        state: accelerate's `GradientState`, which names the loader that is being read.
    """
    loader = state.active_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, SkipBatchSampler):
        return state.remainder, loader.total_batch_size if state.remainder > 0 else 0
    while isinstance(sampler, SkipBatchSampler):
        sampler = sampler.batch_sampler
    if sampler.drop_last:
        return 0, 0
    size = sampler.batch_size * (1 if getattr(sampler, "split_batches", False) else ranks)
    return loader.total_dataset_length % size, size


def _writes_into(tensor: Tensor) -> int:
    """The number of writes into a tensor; an inference tensor does not count them."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class CountedRows:
    """A micro-batch as it was when the totals of its step were counted.

    An override may change rows afterwards, such as one of `_prepare_inputs`. The totals say nothing about those.

    Args:
        tensors: name -> (tensor, number of writes into it).
    """

    tensors: dict[str, tuple[Tensor, int]]

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "CountedRows":
        found = {name: batch.get(name) for name in (*_COUNTED, "input_ids")}
        return cls({name: (x, _writes_into(x)) for name, x in found.items() if isinstance(x, Tensor)})

    def are(self, batch: dict[str, Any], tokens: bool = False) -> bool:
        """True if the rows that are counted are those of a batch; with `tokens`, its token ids too."""
        return all(self._same(name, batch.get(name)) for name in (*_COUNTED, *(("input_ids",) if tokens else ())))

    def _same(self, name: str, value: Any) -> bool:
        known, writes = self.tensors.get(name, (None, 0))
        if value is known:
            return value is None or _writes_into(value) == writes
        if not isinstance(value, Tensor) or known is None or value.shape != known.shape:
            return False
        return _writes_into(known) == writes and torch.equal(value.to(known.device), known.to(value.dtype))  # a copy


def without_repeats(batch: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The batch with weight zero on the rows that a distributed sampler repeats to fill its last round.

    accelerate hands whole micro-batches to the ranks in turn and completes the last round with the epoch's first
    rows, behind the real ones.
    """
    state, ranks = accelerator.gradient_state, accelerator.num_processes
    if ranks == 1 or not state.end_of_dataloader:
        return batch
    remainder, round_of_all = last_round(state, ranks)
    if remainder <= 0:
        return batch
    real = max(0, remainder - accelerator.process_index * (round_of_all // ranks))
    weights = row_weights(batch).clone()
    weights[real:] = 0
    return {**batch, "weight": weights}


def totals_of(
    batches: list[dict[str, Any]], nll_tokens: Callable[[dict[str, Any]], Tensor], accelerator: Accelerator, local: bool
) -> StepTotals:
    """The totals of some micro-batches: of the same step of all ranks (a collective call), or of this one if `local`.

    Args:
        nll_tokens: the tokens of the NLL term of each row of a micro-batch, (B,).
    """
    sums = torch.zeros(2, device=accelerator.device)
    for batch in batches:
        weights = row_weights(batch)
        tokens = (weights * nll_tokens(batch)).sum()
        sums += torch.stack([weights.sum(), tokens]).to(sums.device)
    ranks = 1 if local else accelerator.num_processes
    if ranks > 1:
        sums = accelerator.reduce(sums, reduction="sum")
    return StepTotals(weight=sums[0], tokens=sums[1], ranks=ranks)


# -- `tokens_per_device`: micro-batches of equal work instead of equal rows -----------------------------------------
#
# The rows of a whole optimizer step are merged and cut anew: as many rows to a micro-batch as fit a number of tokens.
# transformers counts the micro-batches that a data loader gives, so it gets as many: each carries a share of those that
# are computed, and only the last of all synchronises gradients.


PARTS = "micro_batches"  # the key under which a batch of the data loader carries micro-batches


class TokenBudget:
    """Cuts the rows of a step into micro-batches of at most `tokens` tokens.

    Attributes:
        parts: the micro-batches that the current step is computed in.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.parts = tokens, 0

    def check(self, accelerator: Accelerator) -> None:
        """Raises a ValueError under an engine that counts micro-batches itself."""
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "`tokens_per_device` does not work with DeepSpeed, which counts micro-batches itself: remove it, or "
                "use another engine."
            )

    def cut_rows(self, costs: list[int], ranks: int) -> list[list[int]]:
        """Row numbers of each micro-batch; every process makes the same number of them where it has the rows."""
        parts = cut(costs, self.tokens)
        if ranks == 1:
            return parts
        return cut(costs, self.tokens, at_least=max(gather_object([len(parts)])))

    def recut(self, batches: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
        """The rows of a step's micro-batches in others, of at most `tokens` tokens each."""
        if any("weight" in batch for batch in batches):  # only a batch with repeated rows need have weights
            batches = [{**batch, "weight": row_weights(batch)} for batch in batches]
        whole = merge(batches)
        costs, ends = row_costs(whole)
        micro = [select(whole, part, ends) for part in self.cut_rows(costs, ranks)]
        if ranks > 1:  # a process with fewer rows repeats one, which weighs nothing
            filler = select(whole, [0], ends)
            filler["weight"] = torch.zeros_like(row_weights(filler))
            micro += [dict(filler) for _ in range(max(gather_object([len(micro)])) - len(micro))]
        return micro

    def pack(self, entries: list[dict[str, Any]], micro: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Batches for transformers: the data loader's `entries`, with a share of the micro-batches in each."""
        self.parts = len(micro)
        bounds = [i * len(micro) // len(entries) for i in range(len(entries) + 1)]
        shares = [micro[a:b] for a, b in pairwise(bounds)]
        return [{**entry, PARTS: share} for entry, share in zip(entries, shares, strict=True)]


def without_parts(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows that the data loader gave, without the micro-batches that were cut from them."""
    return {name: value for name, value in batch.items() if name != PARTS}


def cut(costs: list[int], budget: int, at_least: int = 1) -> list[list[int]]:
    """Row numbers of each micro-batch: in order, each filled up to `budget` tokens, a longer row alone.

    With `at_least`, the fullest are halved until there are so many, or every micro-batch has one row.

    >>> cut([40, 30, 50, 200], 100)
    [[0, 1], [2], [3]]
    """
    parts: list[list[int]] = []
    room = 0
    for row, cost in enumerate(costs):
        if not parts or cost > room:
            parts.append([])
            room = budget
        parts[-1].append(row)
        room -= cost
    while parts and len(parts) < at_least and max(map(len, parts)) > 1:
        fullest = max(range(len(parts)), key=lambda part: len(parts[part]))
        rows = parts[fullest]
        parts[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return parts


def sides_of(batch: dict[str, Any]) -> int:
    """Rows of the tensors that make one row of the data: chosen and rejected of a pair, or one completion."""
    return 1 if "label" in batch else 2


def merge(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch of all rows, in order, padded on the right with zeros. Raises a ValueError for what is no row."""
    rows = len(batches[0]["input_ids"]) // sides_of(batches[0])
    if any(batch.keys() != batches[0].keys() for batch in batches):
        raise ValueError("`tokens_per_device` cannot merge micro-batches of different columns: remove it.")
    merged = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if not all(isinstance(x, Tensor) and x.ndim in (1, 2) for x in parts):
            raise ValueError(f"`tokens_per_device` cannot cut rows with `{name}`: remove it, as for images.")
        each = len(parts[0]) // rows
        if parts[0].ndim == 2:
            width = max(x.size(1) for x in parts)
            parts = [torch.nn.functional.pad(x, (0, width - x.size(1))) for x in parts]
        stacked = torch.cat([x.view(each, -1, *x.shape[1:]) for x in parts], dim=1)
        merged[name] = stacked.reshape(-1, *stacked.shape[2:])
    return merged


def select(batch: dict[str, Any], rows: list[int], lengths: Tensor) -> dict[str, Any]:
    """Some rows of a batch, as wide as the longest of them; `lengths` (R,) are its tokens, on the CPU."""
    count = len(batch["input_ids"]) // sides_of(batch)
    index = torch.tensor(rows)
    every = torch.cat([index + side * count for side in range(sides_of(batch))])
    width = int(lengths[every].max())
    chosen = {}
    for name, values in batch.items():
        taken = values[(index if len(values) == count else every).to(values.device)]
        chosen[name] = taken[:, :width] if taken.ndim == 2 else taken
    return chosen


def row_costs(batch: dict[str, Any]) -> tuple[list[int], Tensor]:
    """Tokens of each row of the data, what a pair begins with counted once, and (R,) where each row ends."""
    mask = batch["attention_mask"].bool()
    tokens = mask.sum(1)
    ends = torch.where(mask, torch.arange(1, mask.size(1) + 1, device=mask.device), 0).amax(1)
    costs = tokens.view(sides_of(batch), -1).sum(0)
    if sides_of(batch) == 2:
        costs = costs - common_beginning(batch["input_ids"], mask)
    return costs.tolist(), ends.cpu()
