"""`data_collator` behaves as the one that was given; a reference or a collator of the wrong kind is refused at once."""

import copy
import pickle
import types

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trl_plus.data.collators import RowExtras


class Halves:
    """A collator that cuts prompts to their first half."""

    def __init__(self, pad_token_id):
        self.inner, self.share = DataCollatorForPreference(pad_token_id=pad_token_id), 2

    def __call__(self, rows):
        assert not any("weight" in row for row in rows)
        cut = [{**row, "prompt_ids": row["prompt_ids"][: len(row["prompt_ids"]) // self.share]} for row in rows]
        return self.inner(cut)


def weighted(rows):
    return [{**row, "weight": 0.5} for row in rows]


@pytest.fixture
def halves(tokenizer):
    return Halves(tokenizer.pad_token_id)


def test_it_is_the_one_that_was_given(make_trainer, pair_rows, halves):
    trainer = make_trainer("DPO", weighted(pair_rows(4)), trainer={"data_collator": halves})
    collator = trainer.data_collator
    assert isinstance(collator, Halves)
    assert collator.share == 2
    collator.share, collator.new = 4, "x"
    assert (halves.share, halves.new) == (4, "x")
    del collator.new
    assert not hasattr(halves, "new")
    with pytest.raises(AttributeError, match="'Halves' object has no attribute 'other'"):
        collator.other  # noqa: B018
    rows = [trainer.train_dataset[i] for i in range(2)]
    batch = collator(rows)
    assert batch["weight"].tolist() == [0.5, 0.5]
    assert batch["input_ids"].shape[1] == max(
        len(row["prompt_ids"]) // 4 + len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")
    )


def test_copies_and_workers_have_the_columns_too(make_trainer, pair_rows, halves):
    trainer = make_trainer("DPO", weighted(pair_rows(4)), trainer={"data_collator": halves})
    row = trainer.train_dataset[0]
    for same in (pickle.loads(pickle.dumps(trainer.data_collator)), copy.deepcopy(trainer.data_collator)):
        assert type(same) is RowExtras
        assert same.collator is not halves
        assert torch.equal(same([row])["input_ids"], trainer.data_collator([row])["input_ids"])
        assert "weight" in same([row])


def test_one_that_is_set_later_sees_no_weights_either(make_trainer, pair_rows, halves, tokenizer):
    trainer = make_trainer("DPO", weighted(pair_rows(4)))
    assert isinstance(trainer.data_collator, DataCollatorForPreference)
    trainer.data_collator.pad_to_multiple_of = 64
    assert trainer.data_collator([trainer.train_dataset[0]])["input_ids"].shape[1] % 64 == 0
    for collator in (halves, halves.__call__, lambda rows: halves(rows)):
        trainer.data_collator = collator
        assert "weight" in trainer.data_collator([trainer.train_dataset[0]])
    assert isinstance(trainer.data_collator, types.FunctionType)
    trainer.train()
    assert trainer.state.global_step == 1


def test_rows_are_cut_as_the_collator_cuts_them(make_trainer, pair_rows, halves):
    """A worker of a data loader gets the collator, and a run with it differs from one without."""
    losses = []
    for arguments, workers in (({}, 0), ({"data_collator": halves}, 0), ({"data_collator": halves}, 1)):
        trainer = make_trainer("DPO", weighted(pair_rows(4)), trainer=arguments, dataloader_num_workers=workers)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == losses[2] != pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"ref_model": "Qwen/Qwen3-0.6B"}, "`ref_model` is the path 'Qwen/Qwen3-0.6B'"),
        ({"ref_model": {"weights": 1}}, "`ref_model` is a dict and not a model"),
        ({"ref_model": torch.nn.Linear}, "`ref_model` is the class Linear and not a model"),
        ({"data_collator": DataCollatorForPreference}, "`data_collator` is the class DataCollatorForPreference"),
        ({"data_collator": {"pad": 0}}, "`data_collator` is a dict, which cannot be called"),
    ],
)
def test_the_wrong_kind_is_refused(method, arguments, said, make_trainer, pair_rows, unpaired_rows):
    rows = unpaired_rows(4) if method == "KTO" else pair_rows(4)
    with pytest.raises(TypeError, match=said):
        make_trainer(method, rows, trainer=arguments)


def test_a_collator_of_the_wrong_kind_without_a_reference(make_trainer, pair_rows):
    with pytest.raises(TypeError, match="`data_collator` is a str"):
        make_trainer("SimPO", pair_rows(4), trainer={"data_collator": "pad"})


def test_a_reward_model_is_no_reference(make_trainer, pair_rows, tiny_model_dir):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    with pytest.raises(TypeError, match="Qwen2ForSequenceClassification, which has no LM head"):
        make_trainer("DPO", pair_rows(4), trainer={"ref_model": model})


def models_of_other_kinds(folder):
    """Models by name, each with the words of its refusal."""
    config = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    causal = AutoModelForCausalLM.from_pretrained(folder)
    mixed = get_peft_model(causal, LoraConfig(r=2, target_modules=["q_proj"]), mixed=True)
    native = AutoModelForCausalLM.from_pretrained(folder)
    native.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return {
        "classifier": (
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1),
            "`model` is a Qwen2ForSequenceClassification, which cannot generate text",
        ),
        "backbone": (AutoModel.from_pretrained(folder), "`model` is a Qwen2Model, which cannot generate text"),
        "encoder and decoder": (T5ForConditionalGeneration(config), "`model` is a T5.*, an encoder with a decoder"),
        "module": (torch.nn.Linear(2, 2), "`model` is a Linear and not a model of transformers"),
        "class": (AutoModelForCausalLM, "`model` is the class AutoModelForCausalLM and not a model"),
        "mixed adapters": (mixed, "`model` is a PeftMixedModel"),
        "adapter of transformers": (native, "The model holds an adapter and is not a PeftModel"),
    }


@pytest.mark.parametrize("method", ["DPO", "SimPO"])
def test_a_policy_of_the_wrong_kind_is_refused(method, make_trainer, pair_rows, tiny_model_dir):
    for model, said in models_of_other_kinds(tiny_model_dir).values():
        with pytest.raises((TypeError, ValueError), match=f"{said}.* Fix: pass a"):
            make_trainer(method, pair_rows(2), reference=False, trainer={"model": model})


def test_an_optimizer_of_other_weights_is_refused(make_trainer, pair_rows, build_tiny_model):
    """Such as one that was made before `peft_config` put an adapter on."""
    other, model = build_tiny_model(0), build_tiny_model(0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds none of the model's trainable weights"):
        make_trainer("SimPO", pair_rows(2), trainer={"model": model, "optimizers": (optimizer, None)})
    own = {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
    adapter = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    with pytest.raises(ValueError, match="before an adapter was put on"):
        make_trainer("SimPO", pair_rows(2), trainer=own | adapter)
    model = build_tiny_model(0)
    own = {
        "model": model,
        "optimizers": (torch.optim.SGD(model.lm_head.parameters(), lr=0.1), None),
    }  # a part is enough
    make_trainer("SimPO", pair_rows(2), trainer=own).train()


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_a_formatted_dataset(form, make_trainer, pair_rows):
    """TRL joins prompt and completion with `+`, which adds tensors up."""
    losses = []
    for rows in (Dataset.from_list(pair_rows(4)), Dataset.from_list(pair_rows(4)).with_format(form)):
        trainer = make_trainer("SimPO", rows)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == losses[1]


def test_the_loss_of_several_evaluation_sets_is_no_metric_of_the_best(make_trainer, pair_rows):
    sets = {name: Dataset.from_list(pair_rows(4, seed)) for name, seed in (("a", 5), ("b", 6))}
    best = {
        "load_best_model_at_end": True,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
    }
    with pytest.raises(ValueError, match="set it to eval_a_loss or eval_b_loss"):
        make_trainer("DPO", pair_rows(4), trainer={"eval_dataset": sets}, **best)
