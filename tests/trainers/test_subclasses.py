"""Subclasses and overrides: exact if the totals of the step reach our loss, TRL's semantics otherwise.

TRL's loss of a micro-batch is a mean over its rows, and transformers divides it by the number of micro-batches. The
expected values come from the model's own logits in plain torch.
"""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from independent import distance, gradient, loss_of
from transformers import AutoModelForCausalLM, TrainerCallback

import trl_plus
from tests.trainers.overrides import (
    AddsExactly,
    AddsInside,
    AddsToTheExact,
    AddsToTheMean,
    AlreadyScaled,
    Classic,
    DrawsTheFirst,
    KeepsTheFirst,
    MasksATokenBefore,
    MasksATokenInPlace,
    NoCount,
    OwnCount,
    OwnDraw,
    OwnInnerLoss,
    OwnLoss,
    OwnOuterLoss,
    OwnStep,
    OwnStepOnMeans,
    PassesOn,
    Renames,
    Twice,
    WantsOutputs,
    WrapsTheStep,
    penalty,
    size_of_logits,
)

BAR = 1e-5
ROWS = 5
# (rows of a micro-batch, micro-batches of a step): the last window is short, or its last micro-batch is
CUTS = [(2, 1), (1, 2), (2, 4)]


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.double() for n, p in model.named_parameters() if p.requires_grad})


@pytest.fixture
def trained(make_trainer, tmp_path):
    """trained(Mixin, "DPO", rows, (batch, accumulation)) -> trainer, losses and gradients of the steps of an epoch."""

    def train(mixin, method, rows, cut, **config):
        name = f"{method}Trainer"
        kind = type(mixin.__name__, (mixin, getattr(trl_plus, name)), {})
        seen = Gradients()
        trainer = make_trainer(
            method,
            rows,
            module=SimpleNamespace(**{name: kind, f"{method}Config": getattr(trl_plus, f"{method}Config")}),
            trainer={"callbacks": [seen]} | config.pop("trainer", {}),
            per_device_train_batch_size=cut[0],
            gradient_accumulation_steps=cut[1],
            learning_rate=0.0,
            max_steps=-1,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            **config,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert len(losses) == len(seen.steps) == -(-len(rows) // (cut[0] * cut[1]))
        return trainer, losses, seen.steps

    return train


def windows(rows, cut):
    """The micro-batches of each optimizer step."""
    micro = [rows[i : i + cut[0]] for i in range(0, len(rows), cut[0])]
    return [micro[i : i + cut[1]] for i in range(0, len(micro), cut[1])]


def means(values):
    return sum(values) / len(values)


class Expected:
    """The loss of a step under both semantics, with gradient."""

    def __init__(self, method, model_dir, reference_dir, **settings):
        self.model, reference = (
            AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (model_dir, reference_dir)
        )
        self.of = lambda rows: loss_of(method, self.model, rows, reference=reference, **settings)

    def exact(self, window):
        return self.of([row for micro in window for row in micro])

    def mean(self, window):
        return means([self.of(micro) for micro in window])

    def own(self, micro):
        sides = [
            [*row["prompt_ids"], *(row["chosen_ids"] if "chosen_ids" in row else row["completion_ids"])]
            for row in micro
        ]
        logits = [self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in sides]
        return torch.stack([(x**2).mean(-1).sum() / 10 for x in logits])

    def own_mean(self, window):
        return means([self.own(micro).mean() for micro in window])

    def own_exact(self, window):
        return self.own([row for micro in window for row in micro]).mean()


KINDS = [
    (Classic, lambda e, w: e.mean(w)),
    (PassesOn, lambda e, w: e.exact(w)),
    (WantsOutputs, lambda e, w: e.exact(w)),
    (Twice, lambda e, w: e.exact(w)),
    (AddsToTheMean, lambda e, w: e.mean(w) + penalty(e.model)),
    (AddsToTheExact, lambda e, w: e.exact(w) + penalty(e.model)),
    (AddsExactly, lambda e, w: e.exact(w) + e.own_exact(w)),
    (OwnLoss, lambda e, w: e.own_mean(w)),
    (OwnInnerLoss, lambda e, w: e.own_mean(w)),
    (OwnOuterLoss, lambda e, w: e.mean(w) + penalty(e.model)),
    (AddsInside, lambda e, w: e.exact(w) + penalty(e.model)),
    (NoCount, lambda e, w: e.mean(w)),
    (OwnCount, lambda e, w: e.mean(w)),
    (OwnDraw, lambda e, w: e.mean(w)),
    (OwnStep, lambda e, w: e.exact(w)),
    (OwnStepOnMeans, lambda e, w: e.mean(w)),
    (WrapsTheStep, lambda e, w: e.exact(w)),
    (AlreadyScaled, lambda e, w: e.exact(w)),
]


def check(trainer, losses, gradients, expected, value, cut):
    for loss, seen, window in zip(losses, gradients, windows(list(trainer.train_dataset), cut), strict=True):
        wanted = value(expected, window)
        assert loss == pytest.approx(wanted.item(), rel=BAR)
        assert distance(seen, gradient(expected.model, wanted)) < BAR


@pytest.mark.parametrize("kind, value", KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_pairs(kind, value, trained, pair_rows, tiny_model_dir, other_model_dir):
    expected = Expected("DPO", tiny_model_dir, other_model_dir)
    for cut in CUTS:
        trainer, losses, gradients = trained(kind, "DPO", pair_rows(ROWS), cut, beta=0.1)
        check(trainer, losses, gradients, expected, value, cut)


def shorter(row):
    """A row without the last token of its completions."""
    return {name: value[:-1] if name in ("chosen_ids", "rejected_ids") else value for name, value in row.items()}


CHANGED = [
    (MasksATokenBefore, lambda micro: [shorter(row) for row in micro]),
    (MasksATokenInPlace, lambda micro: [shorter(row) for row in micro]),
    (KeepsTheFirst, lambda micro: micro[:1]),
    (DrawsTheFirst, lambda micro: micro[:1]),
]


@pytest.mark.parametrize("kind, change", CHANGED, ids=[kind.__name__ for kind, _ in CHANGED])
@pytest.mark.parametrize("method", ["DPO", "CPO"])
def test_rows_that_are_changed_after_they_were_counted(
    method, kind, change, trained, pair_rows, tiny_model_dir, other_model_dir
):
    """The totals of the step are of other rows: the loss is the mean over the micro-batch, as with TRL."""
    expected, cut = Expected(method, tiny_model_dir, other_model_dir, beta=0.1), (2, 2)
    trainer, losses, gradients = trained(kind, method, pair_rows(4), cut, beta=0.1)
    check(trainer, losses, gradients, expected, lambda e, w: means([e.of(change(micro)) for micro in w]), cut)


def test_kto_scores_the_reference_on_rows_that_are_changed(make_trainer, unpaired_rows):
    """Policy and reference are equal, so every reward is zero, unless the reference scored other rows."""
    module = SimpleNamespace(KTOTrainer=type("T", (Renames, trl_plus.KTOTrainer), {}), KTOConfig=trl_plus.KTOConfig)
    trainer = make_trainer("KTO", unpaired_rows(4), module=module, reference=False)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert log["rewards/rejected"] == pytest.approx(0, abs=1e-5)


def test_methods_that_nothing_calls_are_named(make_trainer, pair_rows, caplog):
    class Old(trl_plus.DPOTrainer):
        def dpo_loss(self, *args):
            raise AssertionError

    module = SimpleNamespace(DPOTrainer=Old, DPOConfig=trl_plus.DPOConfig)
    make_trainer("DPO", pair_rows(2), module=module)
    assert "Old defines `dpo_loss`, which earlier versions of TRL called" in caplog.text
    assert "use `pair_losses` instead" in caplog.text


KTO_KINDS = [
    (kind, value)
    for kind, value in KINDS
    if kind in (Classic, WantsOutputs, AddsToTheExact, AddsExactly, OwnLoss, NoCount, OwnDraw, OwnStepOnMeans)
]


@pytest.mark.parametrize("kind, value", KTO_KINDS, ids=[kind.__name__ for kind, _ in KTO_KINDS])
def test_unpaired(kind, value, trained, unpaired_rows, tiny_model_dir, other_model_dir):
    settings = {"beta": 0.1, "loss_type": "apo_zero_unpaired"}
    expected = Expected("KTO", tiny_model_dir, other_model_dir, **settings)
    for cut in CUTS[1:]:
        trainer, losses, gradients = trained(kind, "KTO", unpaired_rows(ROWS), cut, **settings)
        check(trainer, losses, gradients, expected, value, cut)


def test_kto_without_its_totals_still_has_the_reference_point_of_the_step(trained, unpaired_rows):
    """With micro-batches of equal size both semantics are the same number. One row alone has no partner."""

    class Plain:
        pass

    for cut in ((1, 4), (2, 2)):
        rows = unpaired_rows(4)
        _, losses, gradients = trained(Classic, "KTO", rows, cut)
        _, plain, wanted = trained(Plain, "KTO", rows, cut)
        assert losses == pytest.approx(plain, rel=BAR)
        assert distance(gradients[0], wanted[0]) < BAR


@pytest.mark.parametrize("kind", [PassesOn, AddsToTheExact, AddsExactly, OwnStep, OwnStepOnMeans])
def test_tokens_per_device(kind, trained, pair_rows, tiny_model_dir, other_model_dir):
    """Micro-batches by tokens: more of them than the data loader gives, of a row or two each."""
    expected, cut = Expected("DPO", tiny_model_dir, other_model_dir), (2, 2)
    values = dict(KINDS) | {OwnStepOnMeans: lambda e, w: e.mean(w)}
    trainer, losses, gradients = trained(kind, "DPO", pair_rows(4), cut, beta=0.1, tokens_per_device=60)
    check(trainer, losses, gradients, expected, values[kind], cut)


def test_a_loss_function_of_transformers_is_not_read(make_trainer, pair_rows):
    """TRL's trainers ignore `compute_loss_func`; it must not change what the loss is divided by either."""
    losses = []
    for func in (None, lambda *args, **kwargs: torch.zeros(())):
        trainer = make_trainer("DPO", pair_rows(4), per_device_train_batch_size=1, gradient_accumulation_steps=4)
        trainer.compute_loss_func = func
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "kind", [AddsExactly, AddsInside, OwnOuterLoss, OwnLoss, Twice], ids=lambda kind: kind.__name__
)
def test_eval_loss_is_that_of_the_override(kind, trained, pair_rows, tiny_model_dir, other_model_dir):
    held_out = Dataset.from_list(pair_rows(4, 5))
    sets = {"trainer": {"eval_dataset": held_out}, "per_device_eval_batch_size": 2}
    trainer, _, _ = trained(kind, "DPO", pair_rows(2), (2, 1), beta=0.1, **sets)
    wanted = dict(KINDS)[kind](Expected("DPO", tiny_model_dir, other_model_dir), [list(trainer.eval_dataset)])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted.item(), rel=BAR)


def test_the_totals_are_no_number(trained, pair_rows):
    class Divides:
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return size_of_logits(model, inputs).sum() / num_items_in_batch

    with pytest.raises(TypeError, match="exact_mean"):
        trained(Divides, "DPO", pair_rows(2), (1, 2))


@pytest.mark.parametrize("kind", [Twice, OwnLoss, OwnDraw], ids=lambda kind: kind.__name__)
def test_a_step_that_is_not_finite_stops_the_run(kind, trained, pair_rows, monkeypatch):
    from trl_plus.step.nonfinite import NonFiniteError

    class Broken(kind):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * float("nan")

    with pytest.raises(NonFiniteError, match="Step 1: not finite"):
        trained(Broken, "DPO", pair_rows(2), (1, 2))
