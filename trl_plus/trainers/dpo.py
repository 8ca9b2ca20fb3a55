"""DPOTrainer: TRL's, with exact steps for its pairwise losses and mixes of them, and the policy as the reference."""

import logging
from collections.abc import Callable
from typing import Any

import torch
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

from trl_plus.data.forms import without_empty_images
from trl_plus.objectives import Completions
from trl_plus.step.exact_step import row_weights, without_weightless_pairs
from trl_plus.trainers.configs import DPOConfig, computed_here, pair_losses, refuse_ignored
from trl_plus.trainers.construction import own_reference_adapter
from trl_plus.trainers.given_reference import use_given, without
from trl_plus.trainers.paired import EvalRows, PairedTrainer, Rows
from trl_plus.trainers.reference import copy_as_reference
from trl_plus.upstream.compat import TRLDPOConfig

logger = logging.getLogger("trl_plus")


class DPOTrainer(PairedTrainer):
    """TRL's DPOTrainer with exact steps, cDPO, example weights, and the policy itself as the reference.

    Constructor arguments, losses and metrics are TRL's. What differs: `label_smoothing` works under `sigmoid`;
    `ipo_reduction`; the step's gradient does not depend on micro-batches; a `weight` column is honoured; without a
    `ref_model` the reference of a model given as an instance is a copy of that instance.
    """

    config_class = DPOConfig
    accepted_configs = (TRLDPOConfig,)
    has_reference = True

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
        self.reference_in_data = use_given(args, train_dataset, ref_model, paired=True)
        if not args.precompute_ref_log_probs:
            eval_dataset = without(eval_dataset)
        if ref_model is None and not args.precompute_ref_log_probs:
            ref_model = copy_as_reference(model, peft_config)
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
        self.start_check.announce()
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
        log_ratio = torch.cat([chosen.log_ratio, rejected.log_ratio])
        self.start_check.look(log_ratio, torch.cat([chosen.length, rejected.length]))
        return pair_losses(chosen, rejected, self.loss_types, self.loss_weights, self.args, margin)

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.log_ratio

    def rewards(self, side: Completions) -> Tensor:
        return self.beta * side.log_ratio
