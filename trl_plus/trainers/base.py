"""What paired and unpaired trainers share: construction, the reference's scores, metrics, and an exact eval loss."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from trl_plus.forward.lm_head import CompletionHead
from trl_plus.forward.planning import MarksLabels
from trl_plus.forward.rope import own_factors
from trl_plus.forward.score import Scores, score
from trl_plus.objectives import Completions
from trl_plus.recipes.adapter_folders import adapter_instead_of_model
from trl_plus.step.exact_step import ADDED, ExactSteps, row_weights
from trl_plus.step.meters import Meters
from trl_plus.step.nonfinite import NonFiniteSteps
from trl_plus.step.throughput import Throughput
from trl_plus.step.token_budget import TokenBudget
from trl_plus.trainers.adapters import check_kind, keep_trainable
from trl_plus.trainers.card import ModelCards
from trl_plus.trainers.checkpoints import SafeCheckpoints
from trl_plus.trainers.construction import refuse_wrong_kinds
from trl_plus.trainers.layouts import RowLayouts
from trl_plus.trainers.optimizers import refuse_missing, refuse_without_gpu
from trl_plus.trainers.outside import OutsideWeights
from trl_plus.trainers.own_reference import OwnReference
from trl_plus.trainers.reference_cache import KeptReference
from trl_plus.trainers.rows import PreferenceRows
from trl_plus.trainers.rows_alone import RowsAlone
from trl_plus.trainers.seams import Seams
from trl_plus.trainers.sharded import frozen_copy
from trl_plus.trainers.watch import LearningWatch
from trl_plus.upstream.models import base_model, is_peft


def without_weights(batch: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch as TRL knows it: what it does not know would be passed on to the model."""
    return {name: value for name, value in batch.items() if name != "weight"}


def model_id(model: Any) -> str:
    """The path or hub id that a model was loaded from, for the default output folder."""
    from trl.trainer.utils import get_config_model_id

    return model if isinstance(model, str) else get_config_model_id(model.config)


# The mean of the per-row losses: a part of the loss that is logged only as the loss
OBJECTIVE = "objective"
HIDDEN = {OBJECTIVE, ADDED}


class PreferenceTrainer(
    Throughput,
    TokenBudget,
    RowsAlone,
    NonFiniteSteps,
    ExactSteps,
    RowLayouts,
    ModelCards,
    OutsideWeights,
    SafeCheckpoints,
    PreferenceRows,
    KeptReference,
    Seams,
):
    """Everything of our trainers that does not depend on rows being pairs or singles."""

    config_class: type
    accepted_configs: tuple[type, ...]

    def loss_parts(self) -> dict[str, float]:
        """Meters whose means, times these factors, make up the loss: what `eval_loss` is put together from."""
        return {OBJECTIVE: 1.0} | self.router_part()

    def router_part(self) -> dict[str, float]:
        """The load-balancing loss of a mixture of experts, where there is one."""
        return {"aux_loss": self.router_aux_loss_coef} if self.aux_loss_enabled else {}

    def _begin(
        self, model: Any, args: Any, train_dataset: Any, data_collator: Any = None, ref_model: Any = None
    ) -> Any:
        """Before TRL's constructor: the configuration, and what the hooks that run inside it need."""
        refuse_wrong_kinds(ref_model, data_collator)
        if args is not None and not isinstance(args, self.accepted_configs):
            raise TypeError(
                f"{type(self).__name__} takes args of type {self.config_class.__name__}, got {type(args).__name__}."
            )
        if args is None:
            args = self.config_class(f"{model_id(model).split('/')[-1]}-{self.config_class.family.name}")
        adapter = adapter_instead_of_model(model) if isinstance(model, str) else None
        if adapter is not None:
            raise ValueError(adapter)
        refuse_missing(args)
        refuse_without_gpu(args)
        if hasattr(train_dataset, "__len__") and not len(train_dataset):
            raise ValueError("The train dataset is empty: check its path, split and filters.")
        self.args_for_rows = args
        self._adapter_is_given = is_peft(model)
        self._meters: dict[str, Meters] = defaultdict(Meters)
        return args

    has_reference = False
    own_head = True  # False where TRL's loss reads statistics that only TRL's head computes

    def _finish(self) -> None:
        """After TRL's constructor, unless that precomputed the reference and so came here by itself."""
        if hasattr(self, "_heads"):
            return
        if getattr(self.model, "peft_config", None) and not is_peft(self.model):
            raise ValueError(
                "The model is an adapter that was loaded as a model: transformers keeps it frozen and would train the "
                "weights under it. Fix: pass a PeftModel that was loaded with `is_trainable=True`, or a merged model."
            )
        self.check_token_budget()
        self.check_best_metric()
        # transformers before `loss_is_scaled_for_ga` divides a loss by the accumulation steps under this condition
        self.model_accepts_loss_kwargs = False
        keep_trainable(self.model)
        if is_peft(self.model):
            check_kind(self.model)
        if self.has_reference and self.ref_model is None and is_peft(self.model):
            self.own_reference = OwnReference(self.model, self._adapter_is_given)
        self.check_outside()
        self.refuse_unknown_tokens()
        models = [base_model(model) for model in (self.model, self.ref_model) if model is not None]
        for model in models:
            own_factors(model)
        self._heads = [CompletionHead(model, fast=self.own_head) for model in models]
        for head in self._heads:
            head.agree, head.is_main = self._agree, self.accelerator.is_main_process
        self.install_layouts()
        if not any(isinstance(callback, LearningWatch) for callback in self.callback_handler.callbacks):
            self.add_callback(LearningWatch())

    def reference_rows(self, dataset: Any, name: str, compute: Any) -> Any:
        self._finish()  # TRL calls this inside its constructor, before ours can
        return super().reference_rows(dataset, name, compute)

    def rewards(self, side: Completions) -> Tensor:
        """(B,): the implicit reward of each completion, for the metrics."""
        raise NotImplementedError

    @classmethod
    def reward_of(cls, args: Any) -> Callable[[Completions], Tensor]:
        """`rewards` under a configuration, without a model."""
        trainer = object.__new__(cls)
        trainer.args, trainer.beta = args, args.beta
        return trainer.rewards

    @staticmethod
    def copy_as_reference(model: Any, peft_config: Any, args: Any) -> PreTrainedModel | None:
        """A frozen copy of a model given as an instance, or None where no copy is the right reference.

        TRL would load the checkpoint named in the model's config again, which is another model if this one was edited
        in memory and no model at all if it was built there. Adapters need none: they are switched off. A model given
        as a path is loaded twice by TRL, which is right.
        """
        if not isinstance(model, PreTrainedModel) or peft_config is not None or is_peft(model):
            return None
        return frozen_copy(model)

    def measure(self, batches: list[dict[str, Any]], *, local: bool = False) -> Any:
        totals = super().measure(batches, local=local)
        if not local:
            self.plan_step(batches)
        return totals

    # -- scores -----------------------------------------------------------------------------------------------------

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        # TRL passes what it does not know on to the model; a row's weight is nothing for a model
        inputs = {k: v for k, v in without_weights(inputs).items() if k != "label"}
        with self._as_reference():
            compared = self.__dict__.setdefault("_reference_labels", {})
            return super().compute_ref_log_probs(MarksLabels(model, inputs, compared), inputs)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """The policy as its own reference; nothing if the reference is a model."""
        if self.own_reference is None:
            yield
            return
        self.ref_model = self.model  # TRL switches nothing if there is a reference model
        try:
            with self.own_reference.active():
                yield
        finally:
            self.ref_model = None

    def reference_log_probs(self, inputs: dict[str, Any]) -> Any:
        """TRL's reference pass: the reference model, or the policy with its adapter switched off or back."""
        with self.without_statistics():
            return self.compute_ref_log_probs(self.model if self.ref_model is None else self.ref_model, inputs)

    def score(self, model: Any, inputs: dict[str, Any], scored: Tensor | None = None) -> Scores:
        """The policy's scores of a micro-batch, with statistics where they will be logged."""
        with nullcontext() if self.step_is_logged else self.without_statistics():
            return score(model, inputs, scored=scored, router=self.aux_loss_enabled)

    @property
    def step_is_logged(self) -> bool:
        """Whether the current step ends with a log, or may."""
        step, args = self.state.global_step + 1, self.args
        if not self.model.training or args.logging_strategy != IntervalStrategy.STEPS or not self.state.logging_steps:
            return True
        last = step >= self.state.max_steps
        return last or step % self.state.logging_steps == 0 or (step == 1 and args.logging_first_step)

    @contextmanager
    def without_statistics(self) -> Iterator[None]:
        """Passes whose entropy and top-1 hits nobody reads."""
        for head in self._heads:
            head.statistics = False
        try:
            yield
        finally:
            for head in self._heads:
                head.statistics = True

    # -- TRL's own losses ---------------------------------------------------------------------------------------------

    def shared_upstream_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss as this micro-batch's share of the step.

        It is a mean over the micro-batch's rows: weighed by its share of the step's rows, it adds up exactly for every
        loss that is a function of single rows.
        """
        own = self.own_reference
        self.ref_model = self.ref_model if own is None else own.passes(self.model)
        try:
            loss, weights = self.upstream_loss(model, without_weights(inputs)), row_weights(inputs)
        finally:
            self.ref_model = self.ref_model if own is None else None
        self.watch_rows(loss)
        self.note(OBJECTIVE, loss, weights.sum())
        metrics = self.take_upstream_metrics(self.mode)
        self.see_upstream_metrics(metrics, inputs)
        for name, value in metrics.items():
            self.note(name, torch.full((), value, device=loss.device), weights.sum())
        return self.totals.share(loss.expand_as(weights), weights)

    def see_upstream_metrics(self, metrics: dict[str, float], inputs: dict[str, Any]) -> None:
        """What TRL's loss recorded of a micro-batch: name -> mean over its rows."""

    def add_router_loss(self, loss: Tensor, scores: Scores, weights: Tensor) -> Tensor:
        """Mixture-of-experts load balancing, weighed by this micro-batch's share of the rows.

        It is a statistic of the micro-batch, so unlike everything else it does depend on how the batch is cut.
        """
        if scores.aux_loss is None:
            return loss
        self.note("aux_loss", scores.aux_loss, weights.sum())
        return loss + self.router_aux_loss_coef * self.totals.share(scores.aux_loss.expand_as(weights), weights)

    # -- metrics ----------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        return "train" if self.model.training else "eval"

    def note(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Records a metric of some rows or tokens."""
        self._meters[self.mode].add(name, values, weights)

    def note_statistics(self, scores: Scores, sides: dict[str, Any], weights: Tensor) -> None:
        """TRL's token statistics, of the steps that are logged.

        `sides` gives the rows of "chosen" and "rejected", a slice or (B,) bool. Indexing by the latter would wait for
        the device, so other rows weigh nothing instead.
        """
        if not self.step_is_logged:
            return
        mask = scores.mask * weights.repeat(len(scores.mask) // len(weights))[:, None]
        if scores.entropy is not None:
            self.note("entropy", scores.entropy, mask)

        def note_side(name: str, values: Tensor, rows: slice | Tensor) -> None:
            if isinstance(rows, slice):
                self.note(name, values[rows], mask[rows])
            else:
                self.note(name, values, mask * rows[:, None])

        for side, rows in sides.items():
            if scores.mean_logits is not None:
                note_side(f"logits/{side}", scores.mean_logits, rows)
        if scores.is_top1 is not None:
            note_side("mean_token_accuracy", scores.is_top1.float(), sides["chosen"])

    def note_tokens(self, inputs: dict[str, Any], weights: Tensor) -> None:
        """Tokens of rows that count, for TRL's running count of training tokens."""
        if self.mode == "train":
            rows = inputs["attention_mask"].sum(-1)
            tokens = (rows * (weights > 0).repeat(len(rows) // len(weights))).sum()
            self.note("num_tokens", tokens, torch.ones_like(tokens))
            self.note_throughput(inputs, tokens)

    def metric_means(self, mode: str) -> dict[str, float]:
        readings = self._meters[mode].read(self.accelerator)
        self._meters[mode].clear()
        tokens, speed = readings.pop("num_tokens", None), self.throughput(readings)
        means = {name: reading.mean for name, reading in readings.items() if name not in HIDDEN}
        means |= speed
        means["num_tokens"] = self.count_tokens(int(tokens.total) if tokens else 0)
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loop; the loss it reports is a mean over all rows and tokens, whatever the evaluation batch size."""
        self._meters["eval"].clear()
        self.eval_prefix = kwargs.get("metric_key_prefix", "eval")
        output = super().evaluation_loop(*args, **kwargs)
        readings = self._meters["eval"].read(self.accelerator)
        exact = [factor * readings[name].mean for name, factor in self.loss_parts().items() if name in readings]
        if exact:
            added = readings[ADDED].mean if ADDED in readings else 0.0
            output.metrics[f"{self.eval_prefix}_loss"] = sum(exact) + added
        return output
