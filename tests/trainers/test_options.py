"""Options that would have no effect are refused, and what a review of ours found stays found."""

import pytest
import torch
import trl
from datasets import Dataset

import trl_plus

REFUSED = [
    ("DPO", {"label_smoothing": 0.1, "loss_type": ["sigmoid", "aot"]}, "label_smoothing"),
    ("DPO", {"label_smoothing": 0.1, "ld_alpha": 0.5}, "label_smoothing"),
    ("DPO", {"label_smoothing": 0.1, "loss_type": "hinge"}, "label_smoothing"),
    ("DPO", {"label_smoothing": 0.6, "loss_type": "robust"}, "below 0.5"),
    ("DPO", {"loss_type": "exo_pair"}, "label_smoothing"),
    ("DPO", {"ipo_reduction": "sum"}, "ipo_reduction"),
    ("DPO", {"ipo_reduction": "sum", "loss_type": "ipo", "f_divergence_type": "js_divergence"}, "ipo_reduction"),
    ("DPO", {"ipo_reduction": "median", "loss_type": "ipo"}, "ipo_reduction"),
    ("DPO", {"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef"),
    ("DPO", {"discopop_tau": 0.1}, "discopop_tau"),
    ("DPO", {"beta": 0.0}, "beta"),
    ("SimPO", {"beta": -1.0}, "beta"),
    ("SimPO", {"gamma": 1.0, "gamma_beta_ratio": 0.5}, "`gamma` and `gamma_beta_ratio` exclude each other: keep one"),
    ("SimPO", {"label_smoothing": 0.1, "loss_type": "hinge"}, "label_smoothing"),
    ("SimPO", {"loss_type": "ipo"}, "loss_type"),
    ("SimPO", {"sft_weight": -1.0}, "sft_weight"),
    ("SimPO", {"precompute_ref_log_probs": True}, "no effect with SimPO"),
    ("CPO", {"sync_ref_model": True}, "no effect with CPO"),
    ("CPO", {"cpo_alpha": -1.0}, "cpo_alpha"),
    ("CPO", {"loss_type": "simpo"}, "use SimPOConfig and SimPOTrainer"),
    ("DPO", {"loss_type": "simpo"}, "use SimPOConfig and SimPOTrainer"),
    ("ORPO", {"label_smoothing": 0.1}, "no effect with ORPO"),
    ("ORPO", {"odds": "word"}, "odds"),
    ("ORPO", {"nll_scope": "prompt"}, "nll_scope"),
    ("KTO", {"loss_type": "bco"}, "loss_type"),
    ("KTO", {"desirable_weight": -1.0}, "desirable_weight"),
    ("KTO", {"overlong": "cut"}, "overlong"),
]


@pytest.mark.parametrize("method, config, message", REFUSED, ids=[f"{m}-{c}" for m, c, _ in REFUSED])
def test_refused(method, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        getattr(trl_plus, f"{method}Config")(str(tmp_path), use_cpu=True, bf16=False, **config)


def test_gamma_zero_is_zero(tmp_path):
    """A `gamma or default` made a gamma of 0 the default."""
    for config in ({"gamma": 0.0}, {"gamma_beta_ratio": 0.0}):
        assert trl_plus.SimPOConfig(str(tmp_path), use_cpu=True, bf16=False, **config).target_margin == 0.0
    assert trl_plus.SimPOConfig(str(tmp_path), use_cpu=True, bf16=False).target_margin == 1.0


@pytest.mark.parametrize("method", ["SimPO", "CPO", "ORPO", "KTO"])
def test_a_configuration_of_another_method_is_refused(method, pair_rows, tmp_path):
    args = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=f"{method}Config"):
        getattr(trl_plus, f"{method}Trainer")("unused", args=args, train_dataset=Dataset.from_list(pair_rows(2)))


def test_kto_precompute_from_a_path_keeps_its_reference(make_trainer, unpaired_rows, tiny_model_dir):
    """The mismatched rows need the reference at every step, so z_ref must move as without precomputing."""
    histories = []
    for precompute in (False, True):
        trainer = make_trainer(
            "KTO",
            unpaired_rows(8),
            reference=False,
            trainer={"model": tiny_model_dir},
            precompute_ref_log_probs=precompute,
            max_steps=4,
            learning_rate=5.0,
        )
        trainer.train()
        histories.append([log["z_ref"] for log in trainer.state.log_history if "z_ref" in log])
    assert max(histories[0]) > 0
    assert histories[1] == pytest.approx(histories[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["SimPO", "DPO", "KTO"])
def test_compute_metrics_gets_logits(method, make_trainer, pair_rows, unpaired_rows):
    rows = unpaired_rows(4) if method == "KTO" else pair_rows(4)
    rows = [row | {"weight": 1.0} for row in rows]
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions.shape[-1])
        return {"seen": 1.0}

    trainer = make_trainer(method, rows, trainer={"eval_dataset": Dataset.from_list(rows), "compute_metrics": metrics})
    result = trainer.evaluate()
    assert seen == [trainer.model.config.vocab_size]
    assert torch.isfinite(torch.tensor(result["eval_loss"]))


def test_the_window_pass_runs_in_training_mode(make_trainer, unpaired_rows):
    """It is part of the step: with dropout on, z_ref must not depend on whether an evaluation ran before."""
    trainer = make_trainer("KTO", unpaired_rows(4), max_steps=2, eval_strategy="steps", eval_steps=1, trainer={
        "eval_dataset": Dataset.from_list(unpaired_rows(4))})  # fmt: skip
    modes, kl_sums = [], trainer.kl_sums

    def watched(*args):
        modes.append(trainer.model.training)
        return kl_sums(*args)

    trainer.kl_sums = watched
    trainer.train()
    assert modes == [True, False, True, False]


def test_weights_with_an_upstream_loss_are_refused(make_trainer, pair_rows):
    rows = [row | {"weight": 1.0} for row in pair_rows(4)]
    with pytest.raises(ValueError, match="weight"):
        make_trainer("DPO", rows, loss_type="aot")
    with pytest.raises(ValueError, match="weight"):
        make_trainer("DPO", pair_rows(4), loss_type="aot", trainer={"eval_dataset": Dataset.from_list(rows)})


def test_a_text_prompt_next_to_conversations_is_the_users_turn(make_trainer, pair_rows):
    rows = [row | {"prompt": "amber copper"} for row in pair_rows(2)]
    trainer = make_trainer("SimPO", rows)
    text = trainer.processing_class.decode(trainer.train_dataset[0]["prompt_ids"])
    whole = len(rows[0]["chosen"]) > 1  # conversations that hold the prompt themselves
    assert text.count("amber copper") == (0 if whole else 1)
