"""Every layout makes the step that plain rows make; what it cannot do is said, or refused where it was asked for."""

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

BAR = 1e-5
METHODS = [
    ("DPO", {}),
    ("DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    ("DPO", {"f_divergence_type": "js_divergence"}),
    ("DPO", {"use_weighting": True}),
    ("SimPO", {}),
    ("CPO", {}),
    ("ORPO", {}),
    ("ORPO", {"nll_scope": "full"}),
    ("KTO", {}),
]
IDS = ["-".join([method, *map(str, config)]) for method, config in METHODS]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.fixture
def step_of(make_trainer, pair_rows, unpaired_rows):
    """step_of("DPO", layout="packed", ...) -> (loss, {parameter: change}, layouts in use) of one SGD step."""

    def step(method, *, rows=None, **kwargs):
        rows = rows or (unpaired_rows(7) if method == "KTO" else pair_rows(5))
        torch.manual_seed(0)  # adapters start at random
        trainer = make_trainer(method, rows, per_device_train_batch_size=len(rows), **kwargs)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # TRL puts adapters on 4-bit weights in bfloat16
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        update = {n: (p.detach() - before[n]).double() for n, p in trainer.model.named_parameters() if n in before}
        return trainer.state.log_history[0]["loss"], update, {layout.layout for layout in trainer.row_layouts}

    return step


@pytest.fixture
def same(step_of, difference):
    """same(method, layout, ...): the step of `layout` and that of `rows` agree."""

    def check(method, layout="packed", **kwargs):
        loss, update, used = step_of(method, layout=layout, **kwargs)
        plain_loss, plain, unused = step_of(method, layout="rows", **kwargs)
        assert used == {layout}
        assert not unused
        assert loss == pytest.approx(plain_loss, rel=BAR)
        assert difference(plain, update) < BAR

    return check


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("method, config", METHODS, ids=IDS)
def test_full(method, config, layout, same):
    same(method, layout, **config)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("method", ["DPO", "SimPO", "CPO", "ORPO", "KTO"])
def test_lora(method, checkpointing, same):
    adapter = {"trainer": {"peft_config": LORA}, "reference": False}
    same(method, gradient_checkpointing=checkpointing, **adapter)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_checkpointing(method, reentrant, same):
    same(method, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})


@pytest.mark.parametrize("method", ["DPO", "SimPO", "CPO", "ORPO", "KTO"])
def test_qlora(method, same, tiny_model_dir):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    extra = {"model": tiny_model_dir, "quantization_config": nf4, "peft_config": LORA}
    same(method, trainer=extra, reference=False, model_init_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_prompts_of_their_own(layout, same, pair_rows):
    """Sides with different histories share only what they begin with."""
    rows = pair_rows(5)
    for row in rows[::2]:
        row["rejected"] = [row["rejected"][0], {"role": "user", "content": "fern?"}, row["chosen"][0]]
    same("DPO", layout, rows=rows)


def test_a_side_that_begins_the_other(same, pair_rows):
    rows = pair_rows(4)
    rows[1]["rejected"] = rows[1]["chosen"]
    same("DPO", rows=rows)


def test_one_row(same, pair_rows, unpaired_rows):
    same("SimPO", rows=pair_rows(1))
    same("KTO", rows=unpaired_rows(1), loss_type="apo_zero_unpaired")
