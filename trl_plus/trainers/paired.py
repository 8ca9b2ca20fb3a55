"""Trainers on pairs: DPOTrainer with a reference, SimPOTrainer, ORPOTrainer and CPOTrainer without.

Each is TRL's DPOTrainer: its constructor, tokenization, fused LM head, PEFT and distributed setup. Ours are the loss
of a micro-batch, as its exact share of the optimizer step, and the metrics.
"""

import logging
from typing import Any

import torch
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
from trl_plus.objectives import Completions
from trl_plus.step.exact_step import row_weights, without_weightless_pairs
from trl_plus.trainers.configs import CPOConfig, DPOConfig, ORPOConfig, SimPOConfig
from trl_plus.trainers.construction import no_reference_model, own_reference_adapter
from trl_plus.trainers.given_reference import without
from trl_plus.trainers.losses import computed_here, pair_losses, refuse_ignored
from trl_plus.trainers.pairs import PairedTrainer
from trl_plus.trainers.reference import StartCheck
from trl_plus.upstream.compat import TRLDPOConfig

logger = logging.getLogger("trl_plus")
Rows = Dataset | IterableDataset
EvalRows = Rows | DatasetDict | IterableDatasetDict | dict[str, Rows] | None


class DPOTrainer(StartCheck, PairedTrainer):
    """TRL's DPOTrainer with exact steps, cDPO, example weights, and the policy itself as the reference.

    Constructor arguments, losses and metrics are TRL's. What differs: `label_smoothing` works under `sigmoid`;
    `ipo_reduction`; the step's gradient does not depend on micro-batches; a `weight` column is honoured; without a
    `ref_model` the reference of a model given as an instance is a copy of that instance.
    """

    config_class = DPOConfig
    accepted_configs = (TRLDPOConfig,)

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: EvalRows = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ):
        args = self._begin(model, args, train_dataset, data_collator, ref_model)
        train_dataset = without_empty_images(train_dataset)
        refuse_ignored(args)
        self._row_wise = self.own_head = computed_here(args)
        self.reference_is_given = ref_model is not None
        self.use_given_reference(args, train_dataset, ref_model, paired=True)
        if not args.precompute_ref_log_probs:
            eval_dataset = without(eval_dataset)
        if ref_model is None and not args.precompute_ref_log_probs:
            ref_model = self.copy_as_reference(model, peft_config, args)
        with own_reference_adapter(model, reference=True, given=ref_model):
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
        self._finish()
        self.name_reference()
        if not self._row_wise:
            self._explain_upstream_loss()
        factors = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.nll_weight = factors.get("sft", 0.0) if self._row_wise else 0.0

    def _explain_upstream_loss(self) -> None:
        """Says once what TRL's own loss, weighed by the micro-batch's share of the rows, cannot do."""
        if self.has_column("weight"):
            raise ValueError(
                f"A `weight` column does not work with loss_type {self.loss_types} and these options "
                "(f_divergence_type, ld_alpha, use_weighting): remove the column, or choose a plain loss type."
            )
        if {"aot", "aot_unpaired", "sft"} & set(self.loss_types):
            logger.warning(
                "loss_type %s: this mix sorts rows or takes a token mean inside each micro-batch, so its gradient "
                "depends on per_device_train_batch_size; every other loss type is exact.",
                self.loss_types,
            )

    def micro_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._row_wise:
            return super().micro_batch_loss(model, inputs)
        inputs = without_weightless_pairs(inputs)  # TRL's mean knows no weights
        with self.ungathered():
            loss = self.shared_upstream_loss(model, inputs)
        self.note_tokens(inputs, row_weights(inputs))
        return loss

    def reference(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        return self.reference_log_probs(inputs)

    def pair_losses(self, chosen: Completions, rejected: Completions, margin: Tensor | None = None) -> Tensor:
        sides = (chosen, rejected)
        self.check_start(torch.cat([side.log_ratio for side in sides]), torch.cat([side.length for side in sides]))
        return pair_losses(chosen, rejected, self.loss_types, self.loss_weights, self.args, margin)

    def rewards(self, side: Completions) -> Tensor:
        return self.beta * side.log_ratio


class ReferenceFreeTrainer(PairedTrainer):
    """A loss of the policy alone: no second set of weights is loaded, copied or hashed, on any engine."""

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        args: Any = None,
        data_collator: DataCollator | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: EvalRows = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
    ):
        args = self._begin(model, args, train_dataset, data_collator)
        train_dataset = without_empty_images(train_dataset)
        with no_reference_model(policy_is_a_path=isinstance(model, str)), own_reference_adapter(model, reference=False):
            super().__init__(
                model=model,
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
        self._finish()


class SimPOTrainer(ReferenceFreeTrainer):
    """SimPO (https://huggingface.co/papers/2405.14734): length-normalised reward, target margin, no reference."""

    config_class = SimPOConfig
    accepted_configs = (SimPOConfig,)
    method_name = "SimPO"

    @property
    def nll_weight(self) -> float:
        return self.args.sft_weight

    def pair_losses(self, chosen: Completions, rejected: Completions, margin: Tensor | None = None) -> Tensor:
        return objectives.simpo(
            chosen,
            rejected,
            margin=margin,
            beta=self.args.beta,
            gamma=self.args.target_margin,
            label_smoothing=self.args.label_smoothing,
            loss_type=self.args.loss_type[0],
        )

    def rewards(self, side: Completions) -> Tensor:
        return self.args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean


class CPOTrainer(ReferenceFreeTrainer):
    """CPO (https://huggingface.co/papers/2401.08417): likelihood difference plus NLL of the chosen side."""

    config_class = CPOConfig
    accepted_configs = (CPOConfig,)
    method_name = "CPO"

    @property
    def nll_weight(self) -> float:
        return self.args.cpo_alpha

    def pair_losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        return objectives.cpo(
            chosen,
            rejected,
            beta=self.args.beta,
            label_smoothing=self.args.label_smoothing,
            loss_type=self.args.loss_type[0],
        )

    def rewards(self, side: Completions) -> Tensor:
        return self.args.beta * self.logged_logps(side)

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean if self.args.loss_type == ["ipo"] else side.total


class ORPOTrainer(ReferenceFreeTrainer):
    """ORPO (https://huggingface.co/papers/2403.07691): NLL of the chosen side plus the odds-ratio term."""

    config_class = ORPOConfig
    accepted_configs = (ORPOConfig,)
    method_name = "ORPO"

    nll_weight = 1.0

    @property
    def nll_on_prompt(self) -> bool:
        return self.args.nll_scope == "full"

    @property
    def nll_per_row(self) -> bool:
        return self.args.nll_reduction == "sequence"

    def pair_losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        return objectives.odds_ratio(chosen, rejected, beta=self.args.beta, odds=self.args.odds)

    def rewards(self, side: Completions) -> Tensor:
        return self.args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean

    @torch.no_grad()
    def note_pairs(self, chosen: Completions, rejected: Completions, weights: Tensor) -> None:
        super().note_pairs(chosen, rejected, weights)
        ratio = objectives.log_odds_ratio(chosen, rejected, odds=self.args.odds)
        self.note("log_odds_chosen", ratio, weights)
        # Kept for a release, and read by the report page. In TRL this name is the mean of the ratio's logsigmoid
        self.note("log_odds_ratio", ratio, weights)
