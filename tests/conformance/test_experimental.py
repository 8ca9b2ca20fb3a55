"""A metric of ORPO, CPO and SimPO that has the name of one of TRL's experimental trainers is the same number.

Except `logits/*`, which are means over all positions there and over completion tokens here, as in TRL's stable
trainers, and `log_odds_ratio`, which has its old meaning here for a release (docs/migrating.md).
"""

import importlib

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

import trl_plus

CASES = [
    ("orpo", "ORPO", {}, "ORPO", {"nll_scope": "full"}),
    ("cpo", "CPO", {}, "CPO", {}),
    ("cpo", "CPO", {"loss_type": "ipo"}, "CPO", {"loss_type": "ipo"}),
    ("cpo", "CPO", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}, "SimPO", {"gamma": 1.0}),
]
OTHERS = {"logits/chosen", "logits/rejected", "log_odds_ratio", "learning_rate", "epoch", "step"}


@pytest.mark.parametrize("module, theirs, config, ours, own", CASES, ids=["orpo", "cpo", "ipo", "simpo"])
def test_metrics(module, theirs, config, ours, own, tmp_path, tiny_model_dir, tokenizer, pair_rows):
    # plain text, which both end with one end-of-sequence token
    text = [{name: messages[0]["content"] for name, messages in row.items()} for row in pair_rows(4)]
    rows = [{**row, "chosen": " " + row["chosen"], "rejected": " " + row["rejected"]} for row in text]

    def log(package, method, fields):
        pytest.importorskip(package.__name__)
        args = getattr(package, f"{method}Config")(
            str(tmp_path / method), per_device_train_batch_size=4, max_steps=1, learning_rate=0.0, bf16=False,
            use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1,
            max_length=128, disable_tqdm=True, **fields,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        trainer = getattr(package, f"{method}Trainer")(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.train()
        return trainer.state.log_history[0]

    found = log(trl_plus, ours, own)
    wanted = log(importlib.import_module(f"trl.experimental.{module}"), theirs, config)
    names = found.keys() & wanted.keys() - OTHERS
    assert {"loss", "grad_norm", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= names
    for name in names:
        assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    if ours == "ORPO":
        assert {"log_odds_chosen", "nll_loss"} <= names
        assert found["log_odds_ratio"] == found["log_odds_chosen"]  # until the next release
