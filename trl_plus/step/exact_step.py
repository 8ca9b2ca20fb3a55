"""What the whole effective batch of an optimizer step holds, and the loss of a micro-batch as its exact share of it.

The loss of a step is a mean over its effective batch: sum_i w_i l_i / sum_i w_i over the rows of all micro-batches and
ranks, plus token means sum_i w_i nll_i / sum_i w_i n_i. Each micro-batch contributes its sums divided by these global
denominators, so the gradient does not depend on how the batch is cut, the last short window included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.data_loader import SkipBatchSampler
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny

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


class ExactSteps:
    """Mixed in before a trainer: counts the window before its first backward and hands the totals to every loss.

    A loss that the totals reach is exact. A loss that they do not reach has TRL's semantics: the mean over the
    micro-batch. transformers divides both by the number of micro-batches, so overrides may add to either of them.
    """

    # The totals of the step in progress. transformers hands them as `num_items_in_batch` to `training_step`, and that
    # to `compute_loss`. They count only in a call that they reach: an override may withhold or replace them.
    _window_totals: StepTotals | None = None
    _totals: StepTotals | None = None  # of the micro-batch in progress
    _own_losses: list[Tensor] | None = None  # while an evaluation step runs

    def nll_tokens(self, batch: dict[str, Any]) -> Tensor:
        """(B,): tokens of each row's NLL term; zeros for a loss without one."""
        return torch.zeros_like(row_weights(batch))

    def recut(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches that a step is computed in, with the rows of those that the data loader gave."""
        return batches

    def measure(self, batches: list[dict[str, Any]], *, local: bool = False) -> StepTotals:
        """The totals of a window; `local` counts this process only (evaluation, a loss called by hand)."""
        sums = torch.zeros(2, device=self.args.device)
        for batch in batches:
            weights = row_weights(batch)
            tokens = (weights * self.nll_tokens(batch)).sum()
            sums += torch.stack([weights.sum(), tokens]).to(sums.device)
        ranks = 1 if local else self.accelerator.num_processes
        if ranks > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        return StepTotals(weight=sums[0], tokens=sums[1], ranks=ranks)

    def without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with weight zero on the rows that a distributed sampler repeats to fill its last round.

        accelerate hands whole micro-batches to the ranks in turn and completes the last round with the epoch's first
        rows, behind the real ones.
        """
        state, ranks = self.accelerator.gradient_state, self.accelerator.num_processes
        if ranks == 1 or not state.end_of_dataloader:
            return batch
        remainder, round_of_all = last_round(state, ranks)
        if remainder <= 0:
            return batch
        real = max(0, remainder - self.accelerator.process_index * (round_of_all // ranks))
        weights = row_weights(batch).clone()
        weights[real:] = 0
        return {**batch, "weight": weights}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.go_on()
        self._meters["train"].mark()  # what a step that is left out goes back to
        if batches:
            batches = self.recut([*batches[:-1], self.without_repeats(batches[-1])])
        self.use_weights(averaged=False)
        self.model.train()  # a pass over the window (KTO's) is part of the step, also after an evaluation
        self._window_totals = self.measure(batches) if batches else None
        return batches, self._window_totals

    def arrived(self, num_items_in_batch: Any) -> StepTotals | None:
        """The totals of the step in progress if these are what reached a loss; None otherwise."""
        if num_items_in_batch is None or num_items_in_batch is not self._window_totals:
            return None
        divided = not getattr(self, "loss_is_scaled_for_ga", None)
        divisor = self.current_gradient_accumulation_steps if divided else 1
        return replace(num_items_in_batch, micro_batches=divisor)

    @contextmanager
    def with_totals(self, inputs: dict[str, Any], num_items_in_batch: Any) -> Iterator[dict[str, Any]]:
        """Within this context `totals` are those of the step, or of this micro-batch if the step's did not arrive."""
        self._totals = self.arrived(num_items_in_batch)
        try:
            if self._totals is None:
                if not self.model.training:  # the rows of a training step were marked when the step was measured
                    inputs = self.without_repeats(inputs)
                self._totals = self.measure([inputs], local=True)
            yield inputs
        finally:
            self._totals = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.with_totals(inputs, num_items_in_batch) as inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)

    def measured_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._totals is None:  # an override of `compute_loss` that calls `_compute_loss` by itself
            with self.with_totals(inputs, None) as inputs:
                return self.measured_loss(model, inputs)
        loss = super().measured_loss(model, inputs)
        if self._own_losses is not None:
            self._own_losses.append(loss)
        return loss

    def exact_mean(self, values: Tensor, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The part of this micro-batch in the weighted mean of `values` over the rows of the step: a term of a loss.

        Args:
            values: (B,), one per row of the micro-batch `inputs`; one per pair of a paired batch.
            num_items_in_batch: as `compute_loss` received it. Without it the mean is over this micro-batch.
        """
        weights = row_weights(inputs)
        totals = self.arrived(num_items_in_batch) or StepTotals(weight=weights.sum(), tokens=weights.new_zeros(()))
        return totals.share(values, weights)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """TRL's step. Notes how much overrides add to the loss, which `eval_loss` must include."""
        self._own_losses = []
        try:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            if self._own_losses and loss is not None:
                added = loss.detach() - torch.stack(self._own_losses).mean().detach()
                self.note(ADDED, added, row_weights(self.without_repeats(inputs)).sum())
        finally:
            self._own_losses = None
        return loss, logits, labels

    @property
    def totals(self) -> StepTotals:
        """The totals of the step that the current micro-batch belongs to."""
        return self._totals
