"""One step of every method equals the independent computation from the model's own logits, in float64."""

import independent
import pytest
import torch
from transformers import AutoModelForCausalLM

PAIRED = {
    "sigmoid": ("DPO", {}),
    "cdpo": ("DPO", {"label_smoothing": 0.1}),
    "robust": ("DPO", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "ipo": ("DPO", {"loss_type": ["ipo"]}),
    "ipo, summed": ("DPO", {"loss_type": ["ipo"], "ipo_reduction": "sum"}),
    "exo_pair": ("DPO", {"loss_type": ["exo_pair"], "label_smoothing": 1e-3}),
    "discopop": ("DPO", {"loss_type": ["discopop"]}),
    "a mix with sft": ("DPO", {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}),
    **{name: ("DPO", {"loss_type": [name]}) for name in (
        "hinge", "sigmoid_norm", "apo_zero", "apo_down", "nca_pair", "sppo_hard", "aot", "aot_unpaired",
    )},
    "forward KL": ("DPO", {"f_divergence_type": "forward_kl", "beta": 0.01}),
    "JS divergence": ("DPO", {"f_divergence_type": "js_divergence"}),
    "LD-DPO": ("DPO", {"ld_alpha": 0.5}),
    "WPO": ("DPO", {"use_weighting": True}),
    "simpo": ("SimPO", {"gamma": 1.3, "label_smoothing": 0.1}),
    "simpo, hinge and sft": ("SimPO", {"loss_type": ["hinge"], "sft_weight": 0.3}),
    "cpo": ("CPO", {"cpo_alpha": 0.7}),
    "cpo, ipo": ("CPO", {"loss_type": ["ipo"]}),
    "orpo": ("ORPO", {}),
    "orpo of tokens, full scope": ("ORPO", {"odds": "token", "nll_scope": "full"}),
    "orpo, NLL by row": ("ORPO", {"nll_reduction": "sequence"}),
}  # fmt: skip


@pytest.fixture
def compared(make_trainer, tiny_model_dir, other_model_dir):
    """compared(method, rows, settings) -> (difference of the losses, relative distance of the gradients)."""

    def of(method, rows, settings, **known):
        trainer = make_trainer(method, rows, **settings)
        model, other = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
            for folder in (tiny_model_dir, other_model_dir)
        )
        reference = other if method in ("DPO", "KTO") else None
        loss, expected = independent.loss_and_gradient(
            method, model, trainer.train_dataset, reference=reference, **settings, **known
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        step = {name: (before[name] - p.detach()).double() for name, p in trainer.model.named_parameters()}
        logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        return abs(logged - loss) / max(1, abs(loss)), independent.distance(step, expected)

    return of


@pytest.mark.parametrize("method, settings", PAIRED.values(), ids=PAIRED)
def test_pairs(method, settings, compared, pair_rows):
    loss, gradient = compared(method, pair_rows(3), settings)
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize(
    "settings", [{"loss_type": "kto", "desirable_weight": 1.3}, {"loss_type": "apo_zero_unpaired"}]
)
def test_single_rows(settings, compared, pair_rows):
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row, side in zip(pair_rows(2), ("chosen", "rejected"), strict=True)
    ]
    loss, gradient = compared("KTO", rows, settings, partners=[1, 0])
    assert loss < 1e-5
    assert gradient < 1e-4
