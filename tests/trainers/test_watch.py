"""Each rule of LearningWatch where it fires and where it does not, on curves fed to the callback, and one real run."""

import random
from types import SimpleNamespace

import pytest
import torch

from trl_plus import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from trl_plus.trainers import watch
from trl_plus.trainers.watch import LearningWatch, unknown_beta, unknown_rate

CONFIGS = {"DPO": DPOConfig, "SimPO": SimPOConfig, "KTO": KTOConfig, "CPO": CPOConfig, "ORPO": ORPOConfig}


@pytest.fixture
def watched(tmp_path):
    """watched("DPO", curve, ...) -> what the callback says over a curve: a list of log dicts, one per `every` steps."""

    def run(method, curve, every=5, main=True, seen=(), last=1000, **config):
        said = []
        callback = LearningWatch(said.append)
        args = CONFIGS[method](output_dir=str(tmp_path), bf16=False, use_cpu=True, **config)
        history = [{**log, "step": (i + 1) * every} for i, log in enumerate(seen)]
        step = len(seen) * every
        state = SimpleNamespace(max_steps=last, log_history=history, global_step=step, is_world_process_zero=main)
        callback.on_train_begin(args, state, None)
        for log in curve:
            state.global_step += every
            callback.on_log(args, state, None, logs=log)
        return said

    return run


def noise(rng, size):
    return rng.gauss(0, size)


def healthy(method="DPO", logs=80, beta=0.1, seed=0):
    """Chosen up a little, rejected down; per-batch noise in the log-probabilities."""
    rng = random.Random(seed)
    curve = []
    for i in range(logs):
        up, down = 0.02 * i, -0.3 * i
        log = {
            "loss": 0.69 - 0.004 * i + noise(rng, 0.005),
            "rewards/chosen": beta * up,
            "rewards/rejected": beta * down,
            "rewards/margins": beta * (up - down),
            "logps/chosen": -200 + up + noise(rng, 5),
            "logps/rejected": -190 + down + noise(rng, 5),
        }
        if method == "KTO":
            log |= {"kl": max(0.0, 0.01 * i + noise(rng, 0.05)), "one_label_steps": 0.0}
        else:
            log["rewards/accuracies"] = min(0.9, 0.5 + 0.01 * i)
        curve.append(log)
    return curve


def flat(logs=60, method="DPO", accuracy=0.0):
    """A policy that stays the reference."""
    rng = random.Random(1)
    return [
        {
            "loss": 0.6931,
            "rewards/chosen": noise(rng, 1e-5),
            "rewards/rejected": noise(rng, 1e-5),
            "rewards/margins": noise(rng, 1e-5),
            "logps/chosen": -200 + noise(rng, 5),
            "logps/rejected": -190 + noise(rng, 5),
            "rewards/accuracies": accuracy,
        }
        for _ in range(logs)
    ]


@pytest.mark.parametrize("method", CONFIGS)
def test_nothing_is_said_of_a_healthy_run(watched, method):
    for seed in range(5):
        assert watched(method, healthy(method, seed=seed)) == []


def test_stuck_at_the_reference(watched):
    said = watched("DPO", flat(), learning_rate=0.0)
    assert len(said) == 1
    assert "not learning: after 50 steps the loss is still 0.6931" in said[0]
    assert "raise learning_rate (now 0)" in said[0]


def test_warmup_is_no_reason_to_speak(watched):
    assert watched("DPO", flat(30), warmup_steps=120) == []
    assert len(watched("DPO", flat(40), warmup_steps=120)) == 1


def test_other_ranks_are_silent(watched):
    assert watched("DPO", flat(), main=False) == []


def test_a_resumed_run_does_not_repeat_itself(watched):
    assert watched("DPO", flat(20), seen=flat(20)) == []
    assert len(watched("DPO", flat(20), seen=flat(5))) == 1


def test_a_long_run_costs_the_same_per_log(watched, monkeypatch):
    """What a rule is shown stays bounded, also while the log of a resumed run is read again."""
    shown = []
    monkeypatch.setattr(watch, "RULES", (lambda logs, setup: shown.append(len(logs)),))
    watch.RULES[0].__name__ = "counting"
    watched("DPO", healthy(logs=1000), seen=healthy(logs=2000))
    assert len(shown) == 3000 // watch.WINDOW
    assert max(shown) == watch.KEPT


def test_what_was_forgotten_still_counts(watched):
    """One z_ref above 0 in the middle of a long run, and a trend at its beginning."""
    pinned = [log | {"kl": 0.1 if i == 300 else 0.0} for i, log in enumerate(healthy("KTO", logs=900))]
    for log in pinned[:320]:
        log["rewards/chosen"] = log["rewards/rejected"] = 0.0  # at the reference, so that nothing is said before
    assert watched("KTO", pinned) == []
    assert "z_ref" in watched("KTO", [log | {"kl": 0.0} for log in pinned])[0]
    assert watched("SimPO", without_reference(900, slope=0.0, accuracy=0.65)) == []


def without_reference(logs, slope, seed=2, accuracy=0.5):
    """SimPO's curves: noisy from the start, with a trend or without."""
    rng = random.Random(seed)
    return [
        {
            "loss": 1.2 - slope * i + noise(rng, 0.05),
            "rewards/margins": 0.1 + slope * i + noise(rng, 0.05),
            "logps/chosen": -0.8 + noise(rng, 0.02),
            "logps/rejected": -0.9 + noise(rng, 0.02),
            "rewards/accuracies": accuracy,
        }
        for i in range(logs)
    ]


def test_stuck_without_a_reference(watched):
    said = watched("SimPO", without_reference(200, slope=0.0))
    assert len(said) == 1
    assert "neither margins nor log-probabilities have a trend" in said[0]


def test_a_trend_or_many_wins_are_not_stuck(watched):
    for seed in range(10):
        assert watched("SimPO", without_reference(200, slope=0.002, seed=seed)) == []
    assert watched("SimPO", without_reference(200, slope=0.0, accuracy=0.9)) == []  # learned before the first log


def test_a_short_run_is_asked_at_its_end(watched):
    """TRL logs every 10 steps: 60 steps are 6 logs, fewer than the rules are asked after."""
    assert len(watched("DPO", flat(6), every=10, last=60)) == 1
    assert watched("DPO", flat(6), every=10, last=70) == []


def test_pinned_reference_point(watched):
    pinned = [log | {"kl": 0.0} for log in healthy("KTO")]
    said = watched("KTO", pinned)
    assert len(said) == 1
    assert "z_ref (`kl`) has been 0" in said[0]
    later = [log | {"kl": 0.1 if i == 2 else 0.0} for i, log in enumerate(healthy("KTO"))]
    assert watched("KTO", later) == []  # clamped later on: the policy found wrong answers unlikely


def test_one_label_windows(watched):
    said = watched("KTO", [log | {"one_label_steps": 0.25} for log in healthy("KTO")])
    assert len(said) == 1
    assert "25% of the optimizer steps hold rows of one label only" in said[0]
    assert watched("KTO", [log | {"one_label_steps": 0.05} for log in healthy("KTO")]) == []


@pytest.mark.parametrize(
    "method, cure",
    [("DPO", "apo_zero"), ("SimPO", "sft_weight"), ("CPO", "cpo_alpha"), ("ORPO", "odds"), ("KTO", "desirable_weight")],
)
def test_chosen_falls_with_rejected(watched, method, cure):
    falling = []
    for i, log in enumerate(healthy(method)):
        falling.append(
            log | {"logps/chosen": log["logps/chosen"] - 2 * i, "logps/rejected": log["logps/rejected"] - 2 * i}
        )
    said = watched(method, falling)
    assert len(said) == 1
    assert "fall together" in said[0]
    assert cure in said[0]


def test_a_small_fall_of_chosen_is_usual(watched):
    falling = [log | {"logps/chosen": log["logps/chosen"] - 0.2 * i} for i, log in enumerate(healthy())]
    assert watched("DPO", falling) == []


def model_of(parameters, adapter=None):
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: parameters)])
    if adapter:
        model.peft_config = {"default": SimpleNamespace(peft_type=adapter)}
    return model


@pytest.mark.parametrize(
    "method, rate, adapter, words",
    [
        ("SimPO", 1e-5, None, "far above the published rates of SimPO for full fine-tuning of models of this size, "
                              "3e-07 (Mistral-7B base, SFT) to 1e-06 (Llama-3-8B instruct v0.2)"),
        ("SimPO", 5e-7, None, None),
        ("SimPO", 5e-6, "LORA", None),
        ("DPO", 1e-3, "LORA", "LoRA"),
        ("DPO", 5e-9, None, "far below the published rates of DPO for full fine-tuning of models of this size, 7e-08 "
                            "(OLMo 3 32B Think, reasoning) to"),
        ("DPO", 8e-8, None, None),
        ("DPO", 1e-5, None, "far above"),
        ("ORPO", 8e-6, None, None),
        ("KTO", 1e-4, None, "5e-07 (TRL's documentation, SFT) to 5e-06"),
        ("CPO", 1e-6, None, None),
        ("CPO", 1e-4, "LORA", None),
        ("DPO", 1e-3, "PROMPT_TUNING", None),
    ],
)  # fmt: skip
def test_learning_rates(method, rate, adapter, words):
    args = SimpleNamespace(learning_rate=rate, optim="adamw_torch")
    sentence = unknown_rate(method, args, model_of(8_000_000_000, adapter))
    assert (sentence is None) == (words is None), sentence
    assert words is None or words in sentence
    assert unknown_rate(method, args, model_of(1_000_000, adapter)) is None  # no range is known for small models


def test_a_rate_is_compared_with_models_of_its_size():
    args = SimpleNamespace(learning_rate=2e-5, optim="adamw_torch")
    assert unknown_rate("DPO", args, model_of(1_500_000_000)) is None  # 5e-6 was published at this size
    assert "models of this size" in unknown_rate("DPO", args, model_of(8_000_000_000))
    assert "the models nearest in size, 2e-07 (Tulu 3 70B" in unknown_rate("DPO", args, model_of(405_000_000_000))


@pytest.mark.parametrize(
    "method, loss, beta, words",
    [
        ("DPO", ["sigmoid_norm"], 0.1, "far below the published values for loss_type sigmoid_norm, 2 to 5"),
        ("DPO", ["sigmoid_norm"], 5.0, None),
        ("DPO", ["sppo_hard"], 0.1, "far above the published values for loss_type sppo_hard, 0.001"),
        ("DPO", ["sigmoid", "sft"], 0.1, None),
        ("DPO", ["sigmoid"], 0.01, None),
        ("DPO", ["ipo"], 0.1, None),
        ("SimPO", ["sigmoid"], 0.1, "for SimPO, 2 to 10"),
        ("SimPO", ["sigmoid"], 2.0, None),
        ("KTO", "kto", 0.1, None),
        ("CPO", ["ipo"], 7.0, None),
        ("ORPO", ["sigmoid"], 0.0, None),
    ],
)
def test_betas(method, loss, beta, words):
    sentence = unknown_beta(method, SimpleNamespace(loss_type=loss, beta=beta))
    assert (sentence is None) == (words is None), sentence
    assert words is None or words in sentence


def test_a_run_that_is_stuck_and_one_that_is_not(make_trainer, pair_rows, caplog):
    """The trainers watch themselves: learning rate 0 is spoken of, a usual one is not."""
    common = {"max_steps": 52, "per_device_train_batch_size": 2, "reference": False, "max_grad_norm": 1.0}
    make_trainer("DPO", pair_rows(8), learning_rate=0.0, **common).train()
    assert any("after 50 steps the loss is still 0.6931" in record.message for record in caplog.records)
    assert sum("not learning" in record.message for record in caplog.records) == 1
    caplog.clear()
    make_trainer("DPO", pair_rows(8), learning_rate=0.05, **common).train()
    assert not [record.message for record in caplog.records if record.name == "trl_plus" and "step" in record.message]


def test_steps_of_one_label_are_logged(make_trainer, unpaired_rows):
    rows = unpaired_rows(16)
    for kept, share in ((rows, 0.0), ([row for row in rows if row["label"]], 1.0)):
        trainer = make_trainer("KTO", kept, train_sampling_strategy="sequential", max_steps=2)
        trainer.train()
        logs = [log["one_label_steps"] for log in trainer.state.log_history if "one_label_steps" in log]
        assert logs == [share, share]
        assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))
