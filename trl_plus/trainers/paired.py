"""The loss of a micro-batch of pairs, for every method on pairs, and the constructor of those without a reference.

Each trainer is TRL's DPOTrainer: its constructor, tokenization, fused LM head, PEFT and distributed setup. Ours are the
loss of a micro-batch, as its exact share of the optimizer step, and the metrics.
"""

from collections.abc import Callable
from typing import Any

import torch
import trl
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
from trl_plus.step.exact_step import row_weights
from trl_plus.trainers.base import OBJECTIVE, PreferenceTrainer
from trl_plus.trainers.configs import CPOConfig, ORPOConfig, SimPOConfig
from trl_plus.trainers.construction import no_reference_model, own_reference_adapter
from trl_plus.trainers.given_reference import without, without_reference

Rows = Dataset | IterableDataset
EvalRows = Rows | DatasetDict | IterableDatasetDict | dict[str, Rows] | None


class PairedTrainer(PreferenceTrainer, trl.DPOTrainer):
    """The loss of a micro-batch of pairs: a mean of per-pair losses, plus a token-mean NLL of the chosen side."""

    # -- what a method defines ----------------------------------------------------------------------------------------

    def pair_losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """(B,): the loss of each pair, without an NLL term. With `margin_scale`, a third argument `margin`, (B,)."""
        raise NotImplementedError

    def logged_logps(self, side: Completions) -> Tensor:
        """(B,): what `logps/chosen` and `logps/rejected` show."""
        return side.total

    nll_weight: float = 0.0
    nll_on_prompt: bool = False
    nll_per_row: bool = False  # mean over rows of each row's token mean, instead of a mean over all tokens

    def reference(self, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """The reference's summed log-probabilities of both sides, (B,) each."""
        return None, None

    # -- the loss -----------------------------------------------------------------------------------------------------

    def loss_parts(self) -> dict[str, float]:
        return super().loss_parts() | {"nll_loss": self.nll_weight}

    def nll_tokens(self, batch: dict[str, Any]) -> Tensor:
        if not self.nll_weight:
            return super().nll_tokens(batch)
        # the first token of a row has no predecessor that could predict it
        return self.nll_mask(batch)[:, 1:].sum(-1)

    def nll_mask(self, batch: dict[str, Any]) -> Tensor:
        """(B, T): the tokens of the NLL term, on the chosen half of the batch."""
        mask = batch["completion_mask"]
        if self.nll_on_prompt:
            # not the first token of a row, which nothing attended to could predict, wherever the padding is
            attended = batch["attention_mask"]
            mask = torch.cat([torch.zeros_like(attended[:, :1]), attended[:, 1:] * attended[:, :-1]], dim=1)
        return mask[: len(mask) // 2]

    def micro_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        weights, pairs = row_weights(inputs), len(inputs["input_ids"]) // 2
        scored = None
        if self.nll_weight and self.nll_on_prompt:
            rejected_mask = inputs["completion_mask"][pairs:]
            scored = torch.cat([self.nll_mask(inputs), rejected_mask])
        scores = self.score(model, inputs, scored)
        ref_chosen, ref_rejected = self.reference(inputs)
        chosen = scores.rows(slice(None, pairs), ref_chosen)
        rejected = scores.rows(slice(pairs, None), ref_rejected)

        scale = getattr(self.args, "margin_scale", 0.0)
        margin = (scale * inputs["margin"],) if scale else ()
        losses = self.pair_losses(chosen, rejected, *margin)
        self.nonfinite.watch_rows(losses)
        self.note(OBJECTIVE, losses, weights)
        loss = self.totals.share(losses, weights)
        if self.nll_weight:
            loss = loss + self.nll_weight * self.nll(chosen, inputs, weights)
        self.note_pairs(chosen, rejected, weights)
        self.note_statistics(scores, {"chosen": slice(None, pairs), "rejected": slice(pairs, None)}, weights)
        self.note_tokens(inputs, weights)
        return self.add_router_loss(loss, scores, weights)

    def nll(self, chosen: Completions, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        """This micro-batch's part of the negative log-likelihood of the chosen side."""
        over = Completions(chosen.logps, self.nll_mask(inputs)[:, 1:])
        self.nonfinite.watch_rows(over.total)
        if self.nll_per_row:
            self.note("nll_loss", -over.mean, weights)
            return self.totals.share(-over.mean, weights)
        self.note("nll_loss", -over.mean, weights * over.length)
        return self.totals.token_share(-over.total, weights)

    @torch.no_grad()
    def note_pairs(self, chosen: Completions, rejected: Completions, weights: Tensor) -> None:
        """TRL's metrics of a batch of pairs."""
        rewards = {"chosen": self.rewards(chosen), "rejected": self.rewards(rejected)}
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            self.note(f"rewards/{name}", rewards[name], weights)
            self.note(f"logps/{name}", self.logged_logps(side), weights)
        self.note("rewards/accuracies", (rewards["chosen"] > rewards["rejected"]).float(), weights)


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
        train_dataset, eval_dataset = without_reference(train_dataset, type(self).__name__), without(eval_dataset)
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

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean


def read_by(args: CPOConfig, side: Completions) -> Tensor:
    """(B,): the log-probability that the loss compares, per token under `loss_type: ipo`."""
    return side.mean if args.loss_type == ["ipo"] else side.total


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

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * read_by(args, side)

    def logged_logps(self, side: Completions) -> Tensor:
        return read_by(self.args, side)


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

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        return lambda side: args.beta * side.mean

    def logged_logps(self, side: Completions) -> Tensor:
        return side.mean

    @torch.no_grad()
    def note_pairs(self, chosen: Completions, rejected: Completions, weights: Tensor) -> None:
        super().note_pairs(chosen, rejected, weights)
        ratio = objectives.log_odds_ratio(chosen, rejected, odds=self.args.odds)
        self.note("log_odds_chosen", ratio, weights)
        # Kept for a release, and read by the report page. In TRL this name is the mean of the ratio's logsigmoid
        self.note("log_odds_ratio", ratio, weights)
