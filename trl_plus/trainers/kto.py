"""KTOTrainer: TRL's, with one reference point z_ref for the whole effective batch and freely shuffled rows."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)

from trl_plus import objectives
from trl_plus.data.forms import without_empty_images
from trl_plus.forward.layouts import to_device
from trl_plus.forward.score import score
from trl_plus.objectives import Completions
from trl_plus.step.exact_step import StepTotals, row_weights, without_repeats
from trl_plus.step.mismatched import Z_REF, KLRow, Pass, kl_passes, mismatched_partners, read_batches, rows_of
from trl_plus.trainers.base import OBJECTIVE, PreferenceTrainer
from trl_plus.trainers.configs import KTOConfig
from trl_plus.trainers.construction import no_fixed_kl_rows, own_reference_adapter
from trl_plus.trainers.given_reference import use_given, without, without_unused
from trl_plus.trainers.reference import copy_as_reference
from trl_plus.upstream.compat import TRLKTOConfig
from trl_plus.upstream.models import is_peft, without_checkpointing

logger = logging.getLogger("trl_plus")
Rows = Dataset | IterableDataset


def has_images(dataset: Any) -> bool:
    first = next(iter(dataset), {}) if dataset is not None else {}
    return "image" in first or "images" in first


class FirstOf:
    """A data loader that calls `first` before its rows. An engine has the weights ready by then, and not before."""

    def __init__(self, loader: Any, first: Callable[[], None]) -> None:
        self._loader, self._first = loader, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._first()
        return iter(self._loader)


class KTOTrainer(PreferenceTrainer, trl.KTOTrainer):
    """TRL's KTOTrainer with exact steps: z_ref over the whole effective batch, drawn from rows of other prompts.

    Constructor arguments, losses and metrics are TRL's (`kl` is also logged as `z_ref`). What differs: rows are
    shuffled every epoch with the run's seed; mismatched completions are drawn inside each effective batch, never from
    the row's own prompt; a per-device batch of one row works, as do one-label and short last windows; in evaluation
    z_ref is the mean over the whole evaluation set.
    """

    config_class = KTOConfig
    accepted_configs = (TRLKTOConfig,)
    has_reference = True
    unpairs = True

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        ref_model: PreTrainedModel | None = None,
        args: KTOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | DatasetDict | IterableDatasetDict | dict[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ):
        args = self._begin(model, args, train_dataset, data_collator, ref_model)
        train_dataset = without_empty_images(train_dataset)
        # Mismatched rows of images come from TRL's collator, inside each micro-batch: we step aside
        self._upstream_kl = args.loss_type == "kto" and has_images(train_dataset)
        self.own_head = not self._upstream_kl
        if self._upstream_kl:
            logger.warning(
                "Rows with images: mismatched rows and z_ref are TRL's, per micro-batch, so a step's gradient depends "
                "on per_device_train_batch_size; train_sampling_strategy must be sequential."
            )
        elif not isinstance(args, KTOConfig) and args.train_sampling_strategy == "sequential":
            # TRL's own configuration knows no other order for this loss, so it says nothing about what is wanted
            logger.warning("Rows are shuffled: `sequential` of trl.KTOConfig is what TRL's fixed KL rows need.")
            args.train_sampling_strategy = "random"
        if args.loss_type == "kto" and not (peft_config or is_peft(model)):
            train_dataset, eval_dataset = without_unused(train_dataset), without(eval_dataset)
        self.reference_in_data = use_given(args, train_dataset, ref_model, paired=False)
        if not args.precompute_ref_log_probs:
            eval_dataset = without(eval_dataset)
        if ref_model is None:
            ref_model = self._own_reference(model, peft_config, args)
        fixed_rows = nullcontext() if self._upstream_kl else no_fixed_kl_rows(args)
        with fixed_rows, own_reference_adapter(model, reference=True, given=ref_model):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self.loss_type = args.loss_type
        if self._upstream_kl and self.has_column("weight"):
            raise ValueError("A `weight` column does not work with images under KTO: remove the column.")
        self._finish()
        self.start_check.announce()

    def _own_reference(self, model: Any, peft_config: Any, args: Any) -> Any:
        """The reference to hand to TRL, or None where TRL's own choice is right."""
        if args.precompute_ref_log_probs and args.loss_type == "kto" and isinstance(model, str) and not peft_config:
            # TRL would keep no reference then, and the policy would stand in for it in the KL rows: z_ref always 0
            logger.warning(
                "precompute_ref_log_probs is switched off: mismatched rows are drawn anew in every step, so the "
                "reference stays in memory anyway. It works with an adapter, or with loss_type apo_zero_unpaired."
            )
            args.precompute_ref_log_probs = False
        if args.precompute_ref_log_probs and args.loss_type != "kto":
            return None
        return copy_as_reference(model, peft_config)

    # -- the reference point ------------------------------------------------------------------------------------------

    _step_z_ref: Tensor | None = None  # of the step in progress
    _eval_z_ref: Tensor | None = None  # of the whole evaluation set, while an evaluation runs

    @property
    def needs_z_ref(self) -> bool:
        return self.loss_type == "kto" and not self._upstream_kl

    def measure(self, batches: list[dict[str, Any]], *, local: bool = False) -> StepTotals:
        totals = super().measure(batches, local=local)
        if not local and not self._upstream_kl:
            self.note_one_label(batches)
        if not self.needs_z_ref:
            return totals
        if not local:
            self._step_z_ref = self.z_ref(batches, keep_reference=not self.precompute_ref_logps)
            return replace(totals, z_ref=self._step_z_ref)
        # a training micro-batch that the totals did not reach still has its step's reference point
        known = self._step_z_ref if self.model.training else self._eval_z_ref
        return replace(totals, z_ref=self.z_ref(batches, local=True) if known is None else known)

    def plan_step(self, batches: list[dict[str, Any]]) -> None:
        if not self.needs_z_ref or not self.layouts.plans_ahead:  # otherwise the pass over the same rows plans them
            super().plan_step(batches)

    def note_one_label(self, batches: list[dict[str, Any]]) -> None:
        """Metric `one_label_steps`: the share of steps whose rows, over all ranks, are all desirable or all not."""
        sums = torch.zeros(2, device=self.args.device)
        for batch in batches:
            weights, label = row_weights(batch), batch["label"].bool()
            sums += torch.stack([(weights * label).sum(), (weights * ~label).sum()]).to(sums.device)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        self.note("one_label_steps", (sums == 0).any().float(), torch.ones((), device=sums.device))

    @torch.no_grad()
    def z_ref(self, batches: Iterable[dict[str, Any]], *, local: bool = False, keep_reference: bool = False) -> Tensor:
        """The reference point of the rows of these micro-batches, and of the other ranks' unless `local`.

        One pass without gradient over every row's prompt with its partner's completion, by policy and reference. With
        `keep_reference` the reference scores the rows' own completions in the same pass, prompts once, and each
        micro-batch of the list gets them as `ref_logps`.
        """
        # A row of weight zero is no row: it is neither scored nor a partner
        ahead = not local and isinstance(batches, list) and self.layouts.plans_ahead
        if ahead:
            read, flags = read_batches(batches, self.layouts.failures())
            ahead = not self.layouts.see_failures(flags)
        else:
            batches = batches if keep_reference else iter(batches)
            read = [read_batches([batch])[0][0] for batch in batches]
        by_batch = [rows_of(batch) for batch in read]
        own = [row for rows in by_batch for row in rows if row.weight > 0]
        ranks, rank = (1, 0) if local else (self.accelerator.num_processes, self.accelerator.process_index)
        # Partners depend on the rows' contents only, so every rank finds the same ones
        counts = gather_object([len(own)]) if ranks > 1 else [len(own)]
        everyone = gather_object(own) if ranks > 1 else own
        partners = mismatched_partners(everyone)
        if not everyone or partners[0] is None:  # one prompt only
            return torch.zeros((), device=self.args.device)
        pairs = [(row, everyone[partner]) for row, partner in zip(everyone, partners, strict=True)]
        first = sum(counts[:rank])
        # Every rank makes the same number of passes, as sharded models need: a rank with fewer rows fills up
        filler = [(replace(pairs[0][0], weight=0.0), pairs[0][1])] * (max(counts) - counts[rank])
        mine = pairs[first : first + counts[rank]] + filler
        ahead = (self.layouts.planner, self.row_layouts[0], list(zip(batches, read, strict=True))) if ahead else None
        passes = kl_passes(
            mine,
            self.kl_parts(mine),
            own=keep_reference,
            pad_token_id=self.tokenizer.pad_token_id,
            max_length=self.args.max_length,
            device=self.args.device,
            ahead=ahead,
        )
        sums, reference = self.kl_sums(passes, keep_reference)
        if keep_reference:
            for batch, rows in zip(batches, by_batch, strict=True):
                weighty = [i for i, row in enumerate(rows) if row.weight > 0]
                taken, reference = reference.split([len(weighty), len(reference) - len(weighty)])
                if len(weighty) < len(rows):
                    (index,) = to_device([torch.tensor(weighty, dtype=torch.long)], taken.device)
                    taken = taken.new_zeros(len(rows)).index_copy(0, index, taken)
                batch["ref_logps"] = taken
        if ranks > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        return objectives.reference_point(sums[0], sums[1])

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
                self.start_check.look(ratio, scored.length, Z_REF)
            kept.append(reference[: len(weights)])
            sums += torch.stack([(ratio * weights).sum(), weights.sum()])
        return sums, torch.cat(kept) if own else None

    def kl_parts(self, pairs: list[tuple[KLRow, KLRow]]) -> list[list[int]]:
        """The pairs that go into one pass."""
        if self.model.training and self.budget is not None:
            costs = [len(row.prompt) + len(row.completion) + len(partner.completion) for row, partner in pairs]
            return self.budget.cut_rows(costs, self.accelerator.num_processes)
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        return [list(range(start, min(start + size, len(pairs)))) for start in range(0, len(pairs), size)]

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        def measure_z_ref() -> None:
            self.model.eval()
            self._eval_z_ref = self.z_ref(without_repeats(batch, self.accelerator) for batch in dataloader)

        try:
            rows = FirstOf(dataloader, measure_z_ref) if self.needs_z_ref else dataloader
            return super().evaluation_loop(rows, *args, **kwargs)
        finally:
            self._eval_z_ref = None

    # -- the loss -----------------------------------------------------------------------------------------------------

    def micro_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._upstream_kl:
            return self.shared_upstream_loss(model, inputs)
        weights, label = row_weights(inputs), inputs["label"].bool()
        scores = self.score(model, inputs)
        # those of a pass over the step's rows are not the reference's of rows that an override has changed since
        known = "ref_logps" in inputs and (self.precompute_ref_logps or self.are_counted(inputs, tokens=True))
        ref = inputs["ref_logps"] if known else self.reference_log_probs(inputs)[0]
        rows = scores.rows(slice(None), ref)
        self.start_check.look(rows.log_ratio * (weights > 0), rows.length)
        kwargs = {
            "beta": self.beta,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }
        if self.needs_z_ref:
            losses = objectives.kto(rows, label, self.totals.z_ref, **kwargs)
        else:
            losses = objectives.apo_zero_unpaired(rows, label, **kwargs)
        self.nonfinite.watch_rows(rows.log_ratio)  # z_ref is every row's: a row at fault is one whose own log-ratio is
        self.note(OBJECTIVE, losses, weights)
        self.note_rows(rows, label, weights)
        self.note_statistics(scores, {"chosen": label, "rejected": ~label}, weights)
        self.note_tokens(inputs, weights)
        return self.add_router_loss(self.totals.share(losses, weights), scores, weights)

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.log_ratio

    def rewards(self, side: Completions) -> Tensor:
        return self.beta * side.log_ratio

    @torch.no_grad()
    def note_rows(self, rows: Completions, label: Tensor, weights: Tensor) -> None:
        """TRL's metrics; every rank notes both labels, with weight zero where it has no such row."""
        if self.needs_z_ref:
            for name in ("kl", "z_ref"):
                self.note(name, self.totals.z_ref, weights.sum())
        for name, of_label in (("chosen", label), ("rejected", ~label)):
            self.note(f"rewards/{name}", self.rewards(rows), weights * of_label)
            self.note(f"logps/{name}", rows.total, weights * of_label)
