"""Where LearningWatch speaks of a held-out loss that does not move, and where it does not."""

from types import SimpleNamespace

import pytest
import torch

from trl_plus import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from trl_plus.trainers.watch import LearningWatch

CONFIGS = {"DPO": DPOConfig, "SimPO": SimPOConfig, "KTO": KTOConfig, "CPO": CPOConfig, "ORPO": ORPOConfig}
LORA = SimpleNamespace(
    parameters=lambda: [torch.nn.Parameter(torch.ones(1000))],
    peft_config={"default": SimpleNamespace(peft_type="LORA")},
)


def held_out(loss, margin=0.1):
    return {"eval_loss": loss, "eval_rewards/margins": margin}


@pytest.fixture
def evaluated(tmp_path):
    """evaluated("SimPO", {0: 1.26, 60: 1.26}, last=60) -> what is said over held-out losses, or metrics, by step."""

    def run(method, evaluations, last=60, seen=None, model=None, **config):
        said = []
        callback = LearningWatch(said.append)
        args = CONFIGS[method](output_dir=str(tmp_path), bf16=False, use_cpu=True, **config)
        metrics = {step: log if isinstance(log, dict) else held_out(log) for step, log in evaluations.items()}
        history = [{**held_out(loss), "step": step} for step, loss in (seen or {}).items()]
        state = SimpleNamespace(max_steps=last, log_history=history, global_step=0, is_world_process_zero=True)
        callback.on_train_begin(args, state, None, model=model)
        for step, log in metrics.items():
            state.global_step = step
            callback.on_log(args, state, None, logs=log)
        return said

    return run


@pytest.mark.parametrize("method", CONFIGS)
def test_a_held_out_loss_that_did_not_move(evaluated, method):
    (sentence,) = evaluated(method, {0: 1.2597, 30: 1.2595}, last=30, learning_rate=1e-6)
    assert "the held-out loss did not move in 30 steps (1.2597 -> 1.2595)" in sentence
    assert "raise learning_rate (now 1e-06)" in sentence
    assert "lora_target_modules" not in sentence
    (sentence,) = evaluated(method, {0: 1.2597, 30: 1.2595}, last=30, model=LORA)
    assert "`lora_target_modules: all-linear`" in sentence


def test_a_held_out_loss_that_does_not_move_is_said_early_and_at_the_end(evaluated):
    steps = dict.fromkeys(range(0, 201, 20), 0.6931)
    said = evaluated("DPO", steps, last=200)
    assert ["in 60 steps" in said[0], "in 200 steps" in said[1], len(said)] == [True, True, 2]
    assert "in 160 steps" in evaluated("DPO", steps, last=200, warmup_steps=100)[0]


@pytest.mark.parametrize(
    "evaluations, last",
    [
        ({0: 1.26, 60: 0.92}, 60),
        ({0: 1.26, 60: 1.255}, 60),  # little, but more than rounding
        ({0: 1.26, 60: 1.27}, 60),  # worse is moved
        ({0: 1.26, 60: held_out(1.26, margin=0.2)}, 60),
        ({0: 1.26, 20: 0.9, 60: 1.26}, 60),  # it has moved before
        ({0: 1.26, 2: 1.26}, 2),  # too short to tell
        ({0: 1.26, 40: 1.26}, 200),  # early in a longer run
        ({100: 0.9, 200: 0.9}, 200),  # nobody knows where it began
    ],
)
def test_a_held_out_loss_that_says_nothing(evaluated, evaluations, last):
    assert evaluated("SimPO", evaluations, last=last) == []


def test_a_resumed_run_knows_the_held_out_losses_of_its_first_part(evaluated):
    assert len(evaluated("DPO", {60: 0.6931}, seen={0: 0.6931})) == 1
    assert evaluated("DPO", {80: 0.6931}, last=100, seen={0: 0.6931, 60: 0.6931}) == []  # was said
    assert evaluated("DPO", {60: 0.6931}, seen={0: 0.6931, 30: 0.5}) == []
