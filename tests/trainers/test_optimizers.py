"""Every optimizer and tracker of transformers: refused before the model is loaded if it cannot be made."""

import importlib.util
import logging

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

import trl_plus
from trl_plus.trainers.optimizers import refuse_missing, updates_in_backward
from trl_plus.trainers.watch import half_spacing, keeps_rest, needed_rates, rounded_away
from trl_plus.upstream import libraries

NAMES = [name.value for name in OptimizerNames]


@pytest.fixture
def nothing_installed(monkeypatch):
    """Optional packages are not found, whatever this machine has."""
    monkeypatch.setattr(libraries, "installed", lambda *modules: modules[-1] == "torch")


def arguments(tmp_path, **settings):
    return TrainingArguments(str(tmp_path), report_to=[], **settings)


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_cannot_make_is_refused(name, tmp_path):
    args = arguments(tmp_path, optim=name)
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
    except Exception as error:
        missing = isinstance(error, ImportError) or "install" in str(error) or "import" in str(error)
    else:
        missing = False
    module, package = libraries.OPTIMIZERS.get(name, ("torch", ""))
    assert missing == (importlib.util.find_spec(module) is None)
    found = list(libraries.missing_packages({"optim": name}))
    assert [f"pip install {package}" in sentence for sentence in found] == [True] * missing
    if missing:
        with pytest.raises(ImportError, match="pip install"):
            refuse_missing(args)


def test_every_optimizer_without_packages(nothing_installed):
    """Without any optional package those of torch are left, and each other one names its own."""
    left = {name for name in NAMES if not list(libraries.missing_packages({"optim": name}))}
    assert left == {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


@pytest.mark.parametrize("name", INTEGRATION_TO_CALLBACK)
def test_every_tracker(name, monkeypatch):
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_URL", raising=False)
    try:
        INTEGRATION_TO_CALLBACK[name]()
    except (ImportError, RuntimeError, ValueError) as error:
        missing = "install" in str(error)
    else:
        missing = False
    found = list(libraries.missing_packages({"report_to": [name]}))
    assert [f"`report_to: {name}` needs a package: pip install" in sentence for sentence in found] == [True] * missing


@pytest.mark.parametrize(
    "settings, command",
    [
        ({"attn_implementation": "flash_attention_2"}, "pip install kernels, or pip install flash-attn"),
        ({"attn_implementation": "kernels-community/flash-attn"}, "pip install kernels"),
        ({"model_init_kwargs": {"attn_implementation": "flash_attention_3"}}, "pip install kernels"),
        ({"model_init_kwargs": {"use_kernels": True}}, "pip install kernels"),
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"load_in_4bit": True}, "pip install bitsandbytes"),
        ({"deepspeed": "zero3.json"}, "pip install deepspeed"),
    ],
)
def test_kernels_and_quantization(settings, command, nothing_installed):
    (sentence,) = libraries.missing_packages(settings)
    assert command in sentence
    assert "`" + next(iter(settings)) in sentence or "attn_implementation" in sentence


@pytest.mark.parametrize("name", ["sdpa", "eager", None])
def test_attention_without_a_package(name, nothing_installed):
    assert not list(libraries.missing_packages({"attn_implementation": name}))


def test_refused_before_the_model_is_looked_for(tmp_path, pair_rows, nothing_installed):
    with pytest.raises(ImportError, match="`optim: lomo` needs a package: pip install lomo-optim"):
        trl_plus.SimPOTrainer(
            model="no/such-model",
            args=trl_plus.SimPOConfig(str(tmp_path), optim="lomo", bf16=False),
            train_dataset=pair_rows(2),
        )


def test_settings_of_optimizers(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda *modules: True)
    with pytest.raises(ValueError, match="`optim: galore_adamw` needs `optim_target_modules`"):
        refuse_missing(arguments(tmp_path, optim="galore_adamw"))
    with pytest.raises(ValueError, match="set `gradient_accumulation_steps: 1`"):
        refuse_missing(
            arguments(
                tmp_path,
                optim="apollo_adamw_layerwise",
                optim_target_modules="all-linear",
                gradient_accumulation_steps=2,
            )
        )


@pytest.mark.parametrize("optim, steps, exact", [("adalomo", 2, False), ("adalomo", 1, True), ("adamw_torch", 2, None)])
def test_updates_in_the_backward_pass(optim, steps, exact, tmp_path):
    sentence = updates_in_backward(arguments(tmp_path, optim=optim, gradient_accumulation_steps=steps))
    assert (None if sentence is None else "not exact" not in sentence) == exact


# -- 16-bit weights ----------------------------------------------------------------------------------------------------

STUCK = "cannot change: it is rounded away. Fix: train float32 weights"


@pytest.mark.parametrize(
    "dtype, rate, optim, stuck",
    [
        (torch.bfloat16, 5e-7, "adamw_torch", True),
        (torch.bfloat16, 5e-7, "lion_32bit", True),
        (torch.bfloat16, 1e-2, "adamw_torch", False),
        (torch.float32, 5e-7, "adamw_torch", False),
        (torch.bfloat16, 5e-7, "sgd", False),  # its steps are the rate times the gradient
    ],
)
def test_steps_that_are_rounded_away(dtype, rate, optim, stuck, make_trainer, pair_rows, build_tiny_model, caplog):
    trainer = make_trainer(
        "SimPO", pair_rows(4), optim=optim, learning_rate=rate, trainer={"model": build_tiny_model(0).to(dtype)}
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with caplog.at_level(logging.WARNING, "trl_plus"):
        trainer.train()
    same = sum(int((a == b).sum()) for a, b in zip(before, trainer.model.parameters(), strict=True))
    share = same / sum(p.numel() for p in before)
    assert (STUCK in caplog.text) == stuck
    if optim != "sgd":
        assert (share > 0.9) == stuck  # and what it says is so


def test_float16_weights_are_named(tmp_path, build_tiny_model):
    sentence = rounded_away(build_tiny_model(0).half(), arguments(tmp_path, learning_rate=1e-2), None)
    assert "float16 numbers" in sentence
    assert "Fix: train float32 weights (`dtype: float32`)" in sentence


def test_what_is_stuck_is_predicted(build_tiny_model):
    model = build_tiny_model(0).bfloat16()
    needed = needed_rates(model)
    for rate in (1e-6, 1e-4, 1e-3):
        moved = [((p + rate) != p) | ((p - rate) != p) for p in model.parameters()]  # torch adds in float32
        share = sum(int(m.sum()) for m in moved) / sum(m.numel() for m in moved)
        assert float((needed <= rate).double().mean()) == pytest.approx(share, abs=0.02)


def test_half_the_distance_to_the_next_number():
    for dtype in (torch.bfloat16, torch.float16):
        info = torch.finfo(dtype)
        found = half_spacing(torch.tensor([1.0, -1.5, 0.02, 0.0], dtype=dtype)).tolist()
        assert found[:2] == [info.eps / 2] * 2
        assert found[2] == info.eps / 2 * 2**-6  # 0.02 lies between 2^-6 and 2^-5
        assert 0 < found[3] < 1e-7  # a LoRA matrix that starts at 0 moves with any rate


@pytest.mark.parametrize("setting", ["bf16_stochastic_round", "kahan_sum"])
def test_optimizers_that_keep_the_rest(setting):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert not keeps_rest(optimizer)
    optimizer.defaults[setting] = True
    assert keeps_rest(optimizer)
    assert not keeps_rest(None)
