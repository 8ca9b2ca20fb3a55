"""`tokens_per_device`: micro-batches of equal work instead of equal rows. The step they make up stays the same."""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from trl_plus.step.budget import cut, merge, row_costs, select
from trl_plus.step.exact_step import row_weights

PARTS = "micro_batches"


class TokenBudget:
    """Mixed in before `ExactSteps`, which calls `recut` on the rows of each step.

    transformers counts the micro-batches that a data loader gives, so it goes on getting as many: each carries a share
    of those that are computed, and only the last of all synchronises gradients.
    """

    _entries: list[dict[str, Any]] | None = None  # what the data loader gave for the current step
    _parts = 0  # micro-batches that the current step is computed in

    @property
    def tokens_per_device(self) -> int | None:
        return getattr(self.args, "tokens_per_device", None)

    def check_token_budget(self) -> None:
        if self.tokens_per_device and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "`tokens_per_device` does not work with DeepSpeed, which counts micro-batches itself: remove it, or "
                "use another engine."
            )

    def cut_rows(self, costs: list[int]) -> list[list[int]]:
        """Row numbers of each micro-batch; every process makes the same number of them where it has the rows."""
        parts = cut(costs, self.tokens_per_device)
        if self.accelerator.num_processes == 1:
            return parts
        return cut(costs, self.tokens_per_device, at_least=max(gather_object([len(parts)])))

    def recut(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a step's micro-batches in others, of at most `tokens_per_device` tokens each."""
        self._entries = None
        if not self.tokens_per_device or not batches:
            return batches
        self._entries = batches
        if any("weight" in batch for batch in batches):  # only a batch with repeated rows need have weights
            batches = [{**batch, "weight": row_weights(batch)} for batch in batches]
        whole = merge(batches)
        costs, ends = row_costs(whole)
        parts = self.cut_rows(costs)
        micro = [select(whole, part, ends) for part in parts]
        if self.accelerator.num_processes > 1:  # a process with fewer rows repeats one, which weighs nothing
            filler = select(whole, [0], ends)
            filler["weight"] = torch.zeros_like(row_weights(filler))
            micro += [dict(filler) for _ in range(max(gather_object([len(micro)])) - len(micro))]
        return micro

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, totals = super().get_batch_samples(epoch_iterator, num_batches, device)
        entries, self._entries = self._entries, None
        if entries is None:
            return batches, totals
        self._parts = len(batches)
        bounds = [i * len(batches) // len(entries) for i in range(len(entries) + 1)]
        parts = [batches[a:b] for a, b in pairwise(bounds)]
        return [{**entry, PARTS: part} for entry, part in zip(entries, parts, strict=True)], totals

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if PARTS not in inputs:
            return super().training_step(model, inputs, num_items_in_batch)
        loss, last = torch.zeros((), device=self.args.device), len(inputs[PARTS]) - 1
        counted, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, self._parts
        try:
            for i, part in enumerate(inputs[PARTS]):
                with nullcontext() if i == last else self.accelerator.no_sync(model):
                    loss += super().training_step(model, part, num_items_in_batch)
        finally:
            self.current_gradient_accumulation_steps = counted
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of the rows that the data loader gave, if an override of `training_step` does not cut them."""
        return super().compute_loss(model, {k: v for k, v in inputs.items() if k != PARTS}, *args, **kwargs)
