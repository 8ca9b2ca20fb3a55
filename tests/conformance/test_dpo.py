"""DPO: the same rows and options give the metrics, evaluation and weights of TRL's DPOTrainer."""

import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import trl_plus

LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
]  # fmt: skip


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def text(messages):
    return messages[0]["content"]


def plain(rows):
    return [{name: text(row[name]) for name in row} for row in rows]


def implicit(rows):
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def with_system(rows):
    system = {"role": "system", "content": "sage and thistle"}
    return [row | {"prompt": [system, *row["prompt"]]} for row in rows]


def with_tools(rows):
    tools = '[{"type": "function", "function": {"name": "basil", "parameters": {"type": "object", "properties": {}}}}]'
    return [row | {"tools": tools} for row in rows]


def with_template_options(rows):
    return [row | {"chat_template_kwargs": {"thinking": False}} for row in rows]


def plain_implicit(rows):
    return [{side: row["prompt"] + " " + row[side] for side in ("chosen", "rejected")} for row in plain(rows)]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type(loss_type, both, pair_rows):
    config = {"label_smoothing": 0.1} if loss_type in ("exo_pair", "robust") else {}
    if loss_type == "sppo_hard":
        config["learning_rate"] = 0.001  # gradients of some hundreds: a large step would magnify float32's rounding
    both("DPO", pair_rows(8), loss_type=loss_type, **config)


FORMATS = [list, plain, implicit, plain_implicit, with_system, with_tools, with_template_options]


@pytest.mark.parametrize("form", FORMATS)
def test_dataset_formats(form, both, pair_rows):
    both("DPO", form(pair_rows(8)))


OPTIONS = [
    {"f_divergence_type": "js_divergence"},
    {"ld_alpha": 0.5},
    {"use_weighting": True},
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"precompute_ref_log_probs": True},
    {"precompute_ref_log_probs": True, "loss_type": "ipo"},
    {"max_length": 24},
    {"max_length": 24, "truncation_mode": "keep_end"},
    {"max_length": None},
    {"gradient_checkpointing": True},
    {"sync_ref_model": True, "ref_model_sync_steps": 1},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"train_sampling_strategy": "random"},
    {"pad_to_multiple_of": 8},
    {"beta": 0.5, "rel": 1e-5},  # an ulp of a log-probability near 60 in float32 is 4e-6, and beta multiplies it
]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_options(config, both, pair_rows):
    both("DPO", pair_rows(8), **config)


def test_iterable(both, pair_rows):
    both("DPO", lambda: IterableDataset.from_generator(pair_rows, gen_kwargs={"n": 8}))


def test_evaluation(both, pair_rows):
    """8 rows in batches of 4: both a mean of batch means and a mean of rows. Token means differ, as documented."""
    token_means = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
    ours, theirs = both("DPO", pair_rows(8), eval_rows=Dataset.from_list(pair_rows(4, 5)))
    assert ours.evaluation["eval_loss"] > 0
    assert {f"eval_{name}" for name in token_means} <= ours.evaluation.keys() & theirs.evaluation.keys()


def test_compute_metrics(both, pair_rows, token_accuracy):
    """It is given logits and labels, which our LM head never builds by itself."""
    rows = {"eval_rows": Dataset.from_list(pair_rows(4, 5)), "trainer": {"compute_metrics": lambda: token_accuracy}}
    ours, _ = both("DPO", pair_rows(8), **rows)
    assert ours.evaluation["eval_first_logit"] != 0


def test_several_evaluation_sets(run, pair_rows):
    """TRL logs every set's metrics as `eval_rewards/...`; ours carry the set's name. The losses are the same."""
    sets = {name: Dataset.from_list(pair_rows(4, seed)) for name, seed in (("a", 5), ("b", 6))}
    ours = run(trl_plus, "DPO", pair_rows(8), eval_rows=sets).evaluation
    theirs = run(trl, "DPO", pair_rows(8), eval_rows=sets).evaluation
    for name in ("a", "b"):
        assert ours[f"eval_{name}_loss"] == pytest.approx(theirs[f"eval_{name}_loss"], rel=1e-6)
    assert ours["eval_a_loss"] != pytest.approx(ours["eval_b_loss"])


def test_fresh_adapter(both, pair_rows):
    both("DPO", pair_rows(8), reference=False, trainer={"peft_config": lora})


def test_pretrained_adapter(both, pair_rows, tiny_model_dir):
    """The reference is the adapter as it was."""

    def wrapped():
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), lora())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    both("DPO", pair_rows(8), reference=False, trainer={"model": wrapped})


def test_own_reference(both, pair_rows, tiny_model_dir):
    # at the first step all rewards are 0 up to rounding, and which side is above the other is chance
    chance = {"reference": False, "absent": ("rewards/accuracies",)}
    both("DPO", pair_rows(8), **chance)
    both("DPO", pair_rows(8), trainer={"model": tiny_model_dir}, **chance)


def test_bfloat16_model(both, pair_rows):
    """bfloat16 has 8 bits; the orders of additions differ between the heads, and between layouts of rows."""
    both("DPO", pair_rows(8), dtype=torch.bfloat16, steps=1, rel=4e-2)


def test_cdpo_is_not_trls_sigmoid(run, pair_rows):
    """TRL 1.16 ignores label_smoothing under `sigmoid` without a word (docs/migrating.md); ours does not."""
    trls = [run(trl, "DPO", pair_rows(4), steps=1, label_smoothing=e).logs[0]["loss"] for e in (0.0, 0.2)]
    ours = [run(trl_plus, "DPO", pair_rows(4), steps=1, label_smoothing=e).logs[0]["loss"] for e in (0.0, 0.2)]
    assert trls[0] == trls[1] == pytest.approx(ours[0], rel=1e-6)
    assert ours[1] != pytest.approx(ours[0], rel=1e-3)


def test_a_trl_configuration_works_unchanged(tmp_path, tiny_model_dir, tokenizer, pair_rows):
    """`from trl import DPOTrainer` becomes `from trl_plus import DPOTrainer` and nothing else changes."""
    args = trl.DPOConfig(str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to=[], save_strategy="no")
    trainer = trl_plus.DPOTrainer(
        tiny_model_dir, args=args, train_dataset=Dataset.from_list(pair_rows(4)), processing_class=tokenizer
    )
    trainer.train()
    assert trainer.state.global_step == 1
