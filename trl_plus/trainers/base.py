"""The base of all trainers: a run in the order in which it happens, from the constructor to a saved model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import IntervalStrategy

from trl_plus.forward.lm_head import CompletionHead
from trl_plus.forward.packing import RowLayout
from trl_plus.forward.rope import own_factors
from trl_plus.forward.score import MarksLabels, Scores, score
from trl_plus.objectives import Completions
from trl_plus.recipes.checks import adapter_instead_of_model
from trl_plus.runs.model_card import Card, Part
from trl_plus.step.exact_step import (
    ADDED,
    PARTS,
    CountedRows,
    StepTotals,
    TokenBudget,
    loss_of,
    row_weights,
    totals_of,
    without_parts,
    without_repeats,
)
from trl_plus.step.meters import Meters, Throughput, flops_per_token, token_counts
from trl_plus.step.nonfinite import NonFiniteSteps
from trl_plus.trainers.adapters import check_kind, keep_trainable
from trl_plus.trainers.card import card_without_run, write_card
from trl_plus.trainers.checkpoints import Checkpoints, refuse_evaluation_alone, untouched_random_state
from trl_plus.trainers.construction import refuse_wrong_kinds, refuse_wrong_model, warn_of_uncalled
from trl_plus.trainers.layouts import RowLayouts, agree, warn_if_rows_depend
from trl_plus.trainers.optimizers import refuse_foreign_optimizer, refuse_missing, refuse_without_gpu
from trl_plus.trainers.outside import OutsideWeights
from trl_plus.trainers.reference import OwnReference, StartCheck
from trl_plus.trainers.reference_cache import ReferenceCache
from trl_plus.trainers.rows import (
    PreferenceRows,
    check_best_metric,
    check_known_in_stream,
    check_known_tokens,
    has_column,
    sets_of,
)
from trl_plus.trainers.seams import Seams
from trl_plus.trainers.watch import LearningWatch
from trl_plus.upstream.models import base_model, is_peft, leave_autocast


def without_weights(batch: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch as TRL knows it: what it does not know would be passed on to the model."""
    return {name: value for name, value in batch.items() if name not in ("weight", "margin")}


def model_id(model: Any) -> str:
    """The path or hub id that a model was loaded from, for the default output folder."""
    from trl.trainer.utils import get_config_model_id

    return model if isinstance(model, str) else get_config_model_id(model.config)


# The mean of the per-row losses: a part of the loss that is logged only as the loss
OBJECTIVE = "objective"
HIDDEN = {OBJECTIVE, ADDED}


class PreferenceTrainer(Seams):
    """Everything of our trainers that does not depend on rows being pairs or singles.

    The methods stand in the order of a run: construction, `train`, a step (`get_batch_samples`, `training_step`,
    `compute_loss`, `before_step`), scores and metrics of a micro-batch, `log`, evaluation, saving.

    Attributes:
        dataset_rows: makes the rows.
        budget: cuts the rows of a step into micro-batches; None without `tokens_per_device`.
        layouts: how the rows of a micro-batch are laid out.
        nonfinite: checks each step before it is applied.
        meters: the metrics since the last log, under "train" and "eval".
        throughput: the clock.
        checkpoints: saves and resumes.
        outside: the trainable weights outside an adapter.
        own_reference: the policy as its own reference (an adapter without a `ref_model`), or None.
        reference_cache: keeps the reference's log-probabilities (`precompute_ref_log_probs`).
        start_check: compares policy and reference at the first step; None without a reference.
        card: what a run knows for the model card and the trainer does not; None without a run.
    """

    config_class: type
    accepted_configs: tuple[type, ...]
    has_reference = False
    reference_is_given = False  # an explicit `ref_model` may be any model
    reference_in_data = False  # its log-probabilities are columns of the training set
    own_head = True  # False if TRL's loss reads statistics that only TRL's head computes
    unpairs = False  # whether TRL makes two rows of each pair

    layouts: RowLayouts
    outside: OutsideWeights
    own_reference: OwnReference | None = None
    start_check: StartCheck | None = None
    card: Card | None = None

    # -- construction -------------------------------------------------------------------------------------------------

    def _begin(
        self, model: Any, args: Any, train_dataset: Any, data_collator: Any = None, ref_model: Any = None
    ) -> Any:
        """Before TRL's constructor: the configuration, and what the hooks that run inside it need."""
        refuse_wrong_kinds(ref_model, data_collator)
        refuse_wrong_model(model)
        warn_of_uncalled(type(self))
        for each in (model, ref_model):
            leave_autocast(each)
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
        self._adapter_is_given = is_peft(model)
        self.reference_is_given = ref_model is not None
        self.dataset_rows = PreferenceRows(args, self.unpairs, type(self).__name__)
        tokens = getattr(args, "tokens_per_device", None)
        self.budget = TokenBudget(tokens) if tokens else None
        self.meters = {"train": Meters(), "eval": Meters()}
        self.throughput = Throughput()
        self.nonfinite = NonFiniteSteps(self, self.meters["train"], self.running_loss)
        self.checkpoints = Checkpoints(self)
        self.reference_cache = ReferenceCache(self)
        return args

    def _finish(self) -> None:
        """After TRL's constructor, unless that precomputed the reference and so came here by itself."""
        if hasattr(self, "_heads"):
            return
        if getattr(self.model, "peft_config", None) and not is_peft(self.model):
            raise ValueError(
                "The model holds an adapter and is not a PeftModel: it is an adapter that was loaded as a model, or "
                "`add_adapter` of transformers put one on, and no reference can be told apart from it. Fix: pass a "
                "PeftModel (`get_peft_model`, or `PeftModel.from_pretrained` with `is_trainable=True`), or a merged "
                "model."
            )
        refuse_wrong_model(self.model)
        refuse_foreign_optimizer(getattr(self, "optimizer", None), self.model)
        if self.budget is not None:
            self.budget.check(self.accelerator)
        check_best_metric(self.args, self.eval_dataset)
        # transformers before `loss_is_scaled_for_ga` divides a loss by the accumulation steps under this condition
        self.model_accepts_loss_kwargs = False
        keep_trainable(self.model)
        if is_peft(self.model):
            check_kind(self.model)
        if self.has_reference and self.ref_model is None and is_peft(self.model):
            self.own_reference = OwnReference(self.model, self._adapter_is_given)
        self.start_check = StartCheck(self) if self.has_reference else None
        self.outside = OutsideWeights(self.own_reference, self.args, self.accelerator)
        self.outside.check(self.model)
        for name, dataset in sets_of(self.train_dataset, self.eval_dataset).items():
            if hasattr(dataset, "__len__") and getattr(dataset, "column_names", None):
                check_known_tokens(self.model, dataset, name, self.tokenizer)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        for model in models:
            own_factors(base_model(model))
        self._heads = [CompletionHead(base_model(model), fast=self.own_head) for model in models]
        for head in self._heads:
            head.agree, head.is_main = partial(agree, accelerator=self.accelerator), self.accelerator.is_main_process
        self.layouts = RowLayouts(self.args, self.accelerator, models)
        if not any(isinstance(callback, LearningWatch) for callback in self.callback_handler.callbacks):
            self.add_callback(LearningWatch())

    @property
    def row_layouts(self) -> tuple[RowLayout, ...]:
        """The layout of each model, policy first."""
        return self.layouts.of_models

    # -- rows ---------------------------------------------------------------------------------------------------------

    @property
    def data_collator(self) -> Any:
        """The collator that was given, with `RowExtras` round it; also one that is set later."""
        return self._data_collator

    @data_collator.setter
    def data_collator(self, collator: Any) -> None:
        self._data_collator = self.dataset_rows.collator(collator)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        return self.dataset_rows.extra_columns

    @property
    def length_reports(self) -> dict[str, Any]:
        """The effect of `max_length` on each dataset, by name."""
        return self.dataset_rows.reports

    def has_column(self, name: str) -> bool:
        """True if any training or evaluation set has this column."""
        return has_column(sets_of(self.train_dataset, self.eval_dataset), name)

    def prepare_rows(self, dataset: Any, name: str, tokenize: Callable[[Any], Any], processing_class: Any) -> Any:
        def tokenize_and_check(rows: Any) -> Any:
            tokenized = tokenize(rows)
            if getattr(self, "model", None) is not None and hasattr(tokenized, "__len__"):  # a later evaluation's
                check_known_tokens(self.model, tokenized, name, self.tokenizer)
            return tokenized

        return self.dataset_rows.make(dataset, name, tokenize_and_check, processing_class)

    def reference_rows(self, dataset: Any, name: str, compute: Any) -> Any:
        self._finish()  # TRL calls this inside its constructor, before ours can
        return self.reference_cache.rows(dataset, name, compute)

    def reference_batch_size(self, dataset: Any, batch_size: int) -> int:
        return self.reference_cache.batch_size(dataset, batch_size)

    # -- a run --------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `train`. `resume_from_checkpoint=True` takes the newest complete checkpoint, with a warning
        that says why each incomplete one was passed over."""
        self.throughput.restart()
        self.nonfinite.restart()
        self.outside.begin_training(self.model)
        resume_from_checkpoint = self.checkpoints.begin_training(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.use_weights(averaged=True)
        return output

    # -- a step -------------------------------------------------------------------------------------------------------

    # The totals of the step in progress. `get_batch_samples` sets them and hands them to transformers as
    # `num_items_in_batch`, `arrived` reads them. A loss is a share of the step only in a call that this object reaches;
    # an override may withhold or replace it, and the loss is TRL's mean over the micro-batch then. transformers divides
    # either by the number of micro-batches, so overrides may add to both.
    step_totals: StepTotals | None = None
    totals: StepTotals | None = None  # of the micro-batch in progress
    counted: tuple[CountedRows, ...] = ()  # micro-batches that the totals were counted from
    _rows_were_alone = False  # the question was asked

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Draw the rows of the next optimizer step, cut them into micro-batches, and count them."""
        self.throughput.begin_step()
        if 0 < self.state.max_steps <= self.state.global_step:  # resumed there: transformers would make a step
            self.control.should_training_stop = True
        over = self.control.should_training_stop
        drawn = [] if over else super().get_batch_samples(epoch_iterator, num_batches, device)[0]
        if not hasattr(self.train_dataset, "__len__"):
            check_known_in_stream(self.model, drawn, self.tokenizer)
        if self.checkpoints.resume_from is not None:
            self.checkpoints.go_on()
        self.meters["train"].mark()  # what a step that is left out goes back to
        if drawn:
            drawn = [*drawn[:-1], without_repeats(drawn[-1], self.accelerator)]
        cut = self.budget is not None and bool(drawn)
        batches = self.budget.recut(drawn, self.accelerator.num_processes) if cut else drawn
        self.use_weights(averaged=False)
        self.model.train()  # a pass over the rows (KTO's) is part of the step, also after an evaluation
        self.step_totals = self.measure(batches) if batches else None
        self.counted = tuple(CountedRows.of(batch) for batch in (*batches, *(drawn if cut else ())))
        self.nonfinite.begin_step(batches, self.step_totals)
        return self.budget.pack(drawn, batches) if cut else batches, self.step_totals

    def measure(self, batches: list[dict[str, Any]], *, local: bool = False) -> StepTotals:
        """The totals of a step, which is planned here; `local` counts this process only, and one micro-batch."""
        totals = totals_of(batches, self.nll_tokens, self.accelerator, local)
        if not local:
            self.plan_step(batches)
        return totals

    def nll_tokens(self, batch: dict[str, Any]) -> Tensor:
        """(B,): tokens of each row's NLL term; zeros for a loss without one."""
        return torch.zeros_like(row_weights(batch))

    def plan_step(self, batches: list[dict[str, Any]]) -> None:
        self.layouts.plan_step(batches)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The loss and the gradient of what the data loader gave: a micro-batch, or several that were cut from it."""
        if PARTS not in inputs:
            return self._micro_batch_step(model, inputs, num_items_in_batch)
        loss, last = torch.zeros((), device=self.args.device), len(inputs[PARTS]) - 1
        counted, self.current_gradient_accumulation_steps = self.current_gradient_accumulation_steps, self.budget.parts
        try:
            for i, part in enumerate(inputs[PARTS]):
                with nullcontext() if i == last else self.accelerator.no_sync(model):
                    loss += self._micro_batch_step(model, part, num_items_in_batch)
        finally:
            self.current_gradient_accumulation_steps = counted
        return loss

    def _micro_batch_step(self, model: Any, inputs: dict[str, Any], totals: Any) -> Tensor:
        """TRL's step of one micro-batch. A backward pass that fails on a layout is repeated on plain rows."""
        if not self._rows_were_alone:  # before anything has left a state in the model
            warn_if_rows_depend(self, model, inputs)
            self._rows_were_alone = True
        self.nonfinite.begin_micro_batch()
        try:
            return super().training_step(model, inputs, totals)
        except Exception as error:
            if not self.layouts.failed_backward(error):
                raise
        model.zero_grad()  # those of the step before are applied and gone
        for batch in self.nonfinite.forget_step():
            loss = super().training_step(model, batch, totals)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's `compute_loss`, whose loss is this micro-batch's share of the step if its totals arrive here."""
        if PARTS in inputs:  # an override of `training_step` that does not know of them
            inputs = without_parts(inputs)
        self.layouts.in_backward = False
        with self.nonfinite.micro_batch(inputs), self.with_totals(inputs, num_items_in_batch) as inputs:
            found = super().compute_loss(model, inputs, return_outputs=return_outputs)
        self.layouts.in_backward = True
        self.nonfinite.loss_is_known(loss_of(found), model)
        return found

    def arrived(self, num_items_in_batch: Any, inputs: dict[str, Any]) -> StepTotals | None:
        """The totals of the step in progress if these are what reached a loss of rows that they count; else None."""
        if num_items_in_batch is None or num_items_in_batch is not self.step_totals:
            return None
        if not self.are_counted(inputs):
            return None
        divided = not getattr(self, "loss_is_scaled_for_ga", None)
        divisor = self.current_gradient_accumulation_steps if divided else 1
        return replace(num_items_in_batch, micro_batches=divisor)

    def are_counted(self, inputs: dict[str, Any], tokens: bool = False) -> bool:
        """True if the step's rows were counted as they are in `inputs`; with `tokens`, with these token ids."""
        return any(rows.are(inputs, tokens) for rows in self.counted)

    @contextmanager
    def with_totals(self, inputs: dict[str, Any], num_items_in_batch: Any) -> Iterator[dict[str, Any]]:
        """Within this context `totals` are those of the step, or of this micro-batch if the step's did not arrive."""
        self.totals = self.arrived(num_items_in_batch, inputs)
        try:
            if self.totals is None:
                if not self.model.training:  # the rows of a training step were marked when the step was measured
                    inputs = without_repeats(inputs, self.accelerator)
                self.totals = self.measure([inputs], local=True)
            yield inputs
        finally:
            self.totals = None

    def measured_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.totals is None:  # an override of `compute_loss` that calls `_compute_loss` by itself
            with self.with_totals(inputs, None) as inputs:
                return self.measured_loss(model, inputs)
        loss = self.micro_batch_loss(model, inputs)
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
        totals = self.arrived(num_items_in_batch, inputs) or StepTotals(
            weight=weights.sum(), tokens=weights.new_zeros(())
        )
        return totals.share(values, weights)

    def before_step(self, model: Any) -> None:
        self.nonfinite.check(model)

    def norm_is_known(self, norm: Any) -> None:
        self.nonfinite.norm_is_known(norm)

    # -- scores of a micro-batch --------------------------------------------------------------------------------------

    def score(self, model: Any, inputs: dict[str, Any], scored: Tensor | None = None) -> Scores:
        """The policy's scores of a micro-batch, with statistics if they will be logged."""
        with nullcontext() if self.step_is_logged else self.without_statistics():
            return score(model, inputs, scored=scored, router=self.aux_loss_enabled)

    def reference_log_probs(self, inputs: dict[str, Any]) -> Any:
        """TRL's reference pass: the reference model, or the policy with its adapter switched off or back."""
        with self.without_statistics():
            return self.compute_ref_log_probs(self.model if self.ref_model is None else self.ref_model, inputs)

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

    @property
    def step_is_logged(self) -> bool:
        """True if the current step ends with a log, or may."""
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
        self.nonfinite.watch_rows(loss)
        self.note(OBJECTIVE, loss, weights.sum())
        metrics = self.take_upstream_metrics(self.mode)
        if self.start_check is not None:
            self.start_check.look_at_rewards(metrics, inputs)
        for name, value in metrics.items():
            self.note(name, torch.full((), value, device=loss.device), weights.sum())
        return self.totals.share(loss.expand_as(weights), weights)

    def add_router_loss(self, loss: Tensor, scores: Scores, weights: Tensor) -> Tensor:
        """Mixture-of-experts load balancing, weighed by this micro-batch's share of the rows.

        It is a statistic of the micro-batch, so unlike everything else it does depend on how the batch is cut.
        """
        if scores.aux_loss is None:
            return loss
        self.note("aux_loss", scores.aux_loss, weights.sum())
        return loss + self.router_aux_loss_coef * self.totals.share(scores.aux_loss.expand_as(weights), weights)

    # -- metrics of a micro-batch -------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        return "train" if self.model.training else "eval"

    @staticmethod
    def reward_of(args: Any) -> Callable[[Completions], Tensor]:
        """The method's reward under a configuration: completions -> (B,)."""
        raise NotImplementedError

    def rewards(self, side: Completions) -> Tensor:
        """(B,): the implicit reward of each completion, for the metrics."""
        return self.reward_of(self.args)(side)

    def note(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Records a metric of some rows or tokens."""
        self.meters[self.mode].add(name, values, weights)

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
        """Tokens of rows that count, for TRL's running count of training tokens and for the throughput."""
        if self.mode == "train":
            mask = inputs["attention_mask"]
            rows = mask.sum(-1)
            tokens = (rows * (weights > 0).repeat(len(rows) // len(weights))).sum()
            self.note("num_tokens", tokens, torch.ones_like(tokens))
            for name, value, weight in token_counts(mask, self.layouts.plan, tokens):
                self.note(name, value, weight)

    # -- a log --------------------------------------------------------------------------------------------------------

    def log(self, logs, start_time=None):
        self.nonfinite.correct(logs)
        super().log(logs, start_time)

    def metric_means(self, mode: str) -> dict[str, float]:
        readings = self.meters[mode].read(self.accelerator)
        self.meters[mode].clear()
        tokens = readings.pop("num_tokens", None)
        flops = self._flops if self.args.device.type == "cuda" else None
        speed = self.throughput.take(readings, self.accelerator.num_processes, flops)
        means = {name: reading.mean for name, reading in readings.items() if name not in HIDDEN} | speed
        means["num_tokens"] = self.count_tokens(int(tokens.total) if tokens else 0)
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def flops_per_token(self) -> float:
        """FLOPs of a token in a step: the policy's, and the reference's if it scores the rows of each step."""
        own = self.own_reference is not None and not self.precompute_ref_logps
        return flops_per_token(base_model(self.model), self.ref_model is not None or own)

    def _flops(self) -> tuple[float, float]:
        peak = self.throughput.peak(self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32)
        return self.flops_per_token(), peak

    # -- an evaluation ------------------------------------------------------------------------------------------------

    _own_losses: list[Tensor] | None = None  # while an evaluation step runs

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_in_train:
            refuse_evaluation_alone(self)
        with untouched_random_state():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loop; the loss it reports is a mean over all rows and tokens, whatever the evaluation batch size."""
        self.meters["eval"].clear()
        self.eval_prefix = kwargs.get("metric_key_prefix", "eval")
        with self.throughput.paused():
            output = super().evaluation_loop(*args, **kwargs)
        readings = self.meters["eval"].read(self.accelerator)
        exact = [factor * readings[name].mean for name, factor in self.loss_parts().items() if name in readings]
        if exact:
            added = readings[ADDED].mean if ADDED in readings else 0.0
            output.metrics[f"{self.eval_prefix}_loss"] = sum(exact) + added
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """TRL's step. Notes how much overrides add to the loss, which `eval_loss` must include."""
        self._own_losses = []
        try:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            if self._own_losses and loss is not None:
                added = loss.detach() - torch.stack(self._own_losses).mean().detach()
                self.note(ADDED, added, row_weights(without_repeats(inputs, self.accelerator)).sum())
        finally:
            self._own_losses = None
        return loss, logits, labels

    def loss_parts(self) -> dict[str, float]:
        """Meters whose means, times these factors, make up the loss: what `eval_loss` is put together from."""
        return {OBJECTIVE: 1.0} | ({"aux_loss": self.router_aux_loss_coef} if self.aux_loss_enabled else {})

    # -- saving -------------------------------------------------------------------------------------------------------

    def save_whole(self, folder: str, step: int) -> None:
        self.checkpoints.save(folder, step)

    def checkpoint_is_written(self, folder: str) -> None:
        write_card(self, Path(folder))
        self.outside.write(self.model, folder)

    def weights_are_loaded(self, folder: str) -> None:
        self.outside.read(self.model, folder)

    def best_model_is_loaded(self) -> None:
        self.checkpoints.keep_best_only()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does, with three differences.

        A schedule-free optimizer's averaged weights are saved, which are those that are evaluated. Under FSDP the model
        is saved whole, also if checkpoints are saved in shards: transformers would write nothing then. Shards of
        DeepSpeed are written elsewhere and then moved, as whole models are.
        """
        self.use_weights(averaged=True)
        if not _internal_call and self.checkpoints.ends_in_shards:
            self.checkpoints.save_shards(Path(output_dir or self.args.output_dir))
            if self.args.push_to_hub:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            return None
        with nullcontext() if _internal_call else self.checkpoints.whole_model():
            return super().save_model(output_dir, _internal_call)

    def save_files(self, folder: str, write: Callable[[str], None]) -> None:
        def with_outside(part: str) -> None:
            write(part)
            if self.args.should_save:
                self.outside.write(self.model, part)

        self.checkpoints.save_files(folder, with_outside)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`, on the main process. Arguments are TRL's.

        Args:
            dataset_name: a hub id or a path; it is remembered for the cards of later checkpoints.
        """
        if dataset_name is not None:
            self.card = replace(self.card or card_without_run(self), data=[Part(dataset_name)])
        if self.is_world_process_zero():
            write_card(self, Path(self.args.output_dir), model_name, tags)
