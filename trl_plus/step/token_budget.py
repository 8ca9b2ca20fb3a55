"""`tokens_per_device`: micro-batches of equal work instead of equal rows. The step they make up stays the same.

The rows of a whole optimizer step are merged and cut anew: as many rows to a micro-batch as fit a number of tokens.
transformers counts the micro-batches that a data loader gives, so it goes on getting as many: each carries a share of
those that are computed, and only the last of all synchronises gradients.
"""

from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from trl_plus.forward.layouts import common_beginning
from trl_plus.step.exact_step import row_weights

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
