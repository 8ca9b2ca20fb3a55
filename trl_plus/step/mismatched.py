"""The passes over KTO's mismatched rows: made on the host, sent to the device at once, scored without gradient."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.planning import count_rows, rows_of_batch
from trl_plus.forward.score import score
from trl_plus.forward.transfer import to_device
from trl_plus.step.partners import KLRow, kl_batch
from trl_plus.upstream.models import without_checkpointing

Z_REF = "a log-ratio of KTO's mismatched rows (z_ref)"  # in the messages of the check at the start

Batch = dict[str, Any]
Pass = tuple[Tensor, Batch, Batch]


class MismatchedRows:
    """Mixed in before a trainer of single rows."""

    def kl_passes(
        self, pairs: list[tuple[KLRow, KLRow]], own: bool, step: list[tuple[dict[str, Any], dict[str, Any]]] | None
    ) -> list[Pass]:
        """Of each pass: the weights of its rows, the rows, and what the reference scores (with `own` their own
        completions, too). It goes to the device in one copy, with the plans of the step.

        Args:
            step: the micro-batches to be planned, each with its copy on the host; None plans nothing.
        """
        tensors = partial(
            kl_batch,
            pad_token_id=self.tokenizer.pad_token_id,
            max_length=self.args.max_length,
            device=torch.device("cpu"),
        )
        weights, batches = [], []
        for part in self.kl_parts(pairs):
            rows = [pairs[i] for i in part]
            weights.append(torch.tensor([row.weight for row, _ in rows]))
            batches.append(tensors(rows))
            if own:
                batches.append(tensors([(row, row) for row, _ in rows] + rows))
        flat = [*weights, *(tensor for batch in batches for tensor in batch.values())]
        if step is None:
            moved = iter(to_device(flat, self.args.device))
        else:
            made = [rows_of_batch(batch) for batch in batches]
            known, _ = count_rows([*made, *(rows_of_batch(read) for _, read in step)])
            given = [rows_of_batch(batch) for batch, _ in step]
            first = self.row_layouts[0]
            moved = iter(self.planner.prepare([*made, *given], known, first.setting, self.args.device, flat))
        weights = [next(moved) for _ in weights]
        there = [{name: next(moved) for name in batch} for batch in batches]
        if step is not None:
            for before, now in zip(made, there, strict=True):
                self.planner.know(before, rows_of_batch(now))
        each = 2 if own else 1
        return list(zip(weights, there[::each], there[each - 1 :: each], strict=True))

    def kl_sums(self, passes: list[Pass], own: bool) -> tuple[Tensor, Tensor | None]:
        """(2,): the weighted sum of log-ratios over mismatched rows, and the sum of their weights.

        And with `own`, (R,): the reference's log-probabilities of the rows' own completions.
        """
        sums, kept = torch.zeros(2, device=self.args.device), []
        for weights, mismatched, both in passes:
            with self.compute_loss_context_manager(), without_checkpointing(self.model, self.args):
                with self.without_statistics():
                    scores = score(self.model_wrapped, mismatched)
                reference = self.reference_log_probs(both)[0]
                scored = scores.rows(slice(None), reference[-len(weights) :])
                ratio = scored.log_ratio
                self.check_start(ratio, scored.length, Z_REF)
            kept.append(reference[: len(weights)])
            sums += torch.stack([(ratio * weights).sum(), weights.sum()])
        return sums, torch.cat(kept) if own else None

    def kl_parts(self, pairs: list[tuple[KLRow, KLRow]]) -> list[list[int]]:
        """Which of the pairs go into one pass."""
        if self.model.training and self.tokens_per_device:
            return self.cut_rows(
                [len(row.prompt) + len(row.completion) + len(partner.completion) for row, partner in pairs]
            )
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        return [list(range(start, min(start + size, len(pairs)))) for start in range(0, len(pairs), size)]
