"""Where TRL is right, we say what TRL says: same rows, same loss and metrics as its DPOTrainer and KTOTrainer."""

import pytest
import trl
from datasets import Dataset

import trl_plus

LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
]  # fmt: skip


def first_log(trainer):
    trainer.train()
    return trainer.state.log_history[0]


def assert_same_metrics(ours, theirs):
    skip = {"epoch", "step", "train_runtime", "learning_rate"}
    missing = {k for k in theirs if k not in ours} - {"train_samples_per_second", "train_steps_per_second"}
    assert not missing
    for name in theirs.keys() - skip:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_dpo_loss_type(loss_type, make_trainer, pair_rows):
    config = {"loss_type": loss_type} | ({"label_smoothing": 0.1} if loss_type in ("exo_pair", "robust") else {})
    ours = first_log(make_trainer("DPO", pair_rows(4), **config))
    theirs = first_log(make_trainer("DPO", pair_rows(4), module=trl, **config))
    assert_same_metrics(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        {"f_divergence_type": "js_divergence"},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"precompute_ref_log_probs": True},
        {"precompute_ref_log_probs": True, "loss_type": "ipo"},
        {"max_length": 24},
    ],
    ids=str,
)
def test_dpo_options(config, make_trainer, pair_rows):
    ours = first_log(make_trainer("DPO", pair_rows(4), **config))
    theirs = first_log(make_trainer("DPO", pair_rows(4), module=trl, **config))
    assert_same_metrics(ours, theirs)


def test_apo_zero_unpaired(make_trainer, unpaired_rows):
    config = {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "sequential", "desirable_weight": 1.5}
    ours = first_log(make_trainer("KTO", unpaired_rows(4), **config))
    theirs = first_log(make_trainer("KTO", unpaired_rows(4), module=trl, **config))
    theirs.pop("kl")  # a constant zero: this loss has no KL term
    assert_same_metrics(ours, theirs)


def test_kto_with_the_partners_of_trl(make_trainer, pair_rows):
    """With two rows there is only one mismatched pairing, so TRL's rotation and our rule agree."""
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i == 0} for i, row in enumerate(pair_rows(2))
    ]
    config = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2}
    ours = first_log(make_trainer("KTO", rows, **config))
    theirs = first_log(make_trainer("KTO", rows, module=trl, **config))
    assert theirs["kl"] > 0
    assert_same_metrics(ours, theirs)


def test_cdpo_is_not_trls_sigmoid(make_trainer, pair_rows):
    """TRL 1.16 ignores label_smoothing under `sigmoid` without a word."""
    plain = first_log(make_trainer("DPO", pair_rows(4)))
    smooth = first_log(make_trainer("DPO", pair_rows(4), label_smoothing=0.2))
    assert smooth["loss"] != pytest.approx(plain["loss"], rel=1e-3)


def test_a_trl_configuration_works_unchanged(tmp_path, tiny_model_dir, tokenizer, pair_rows):
    """`from trl import DPOTrainer` becomes `from trl_plus import DPOTrainer` and nothing else changes."""
    args = trl.DPOConfig(str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to=[], save_strategy="no")
    trainer = trl_plus.DPOTrainer(
        tiny_model_dir, args=args, train_dataset=Dataset.from_list(pair_rows(4)), processing_class=tokenizer
    )
    trainer.train()
    assert trainer.state.global_step == 1
