"""Rows do not depend on the rows of their batch; a model in which they do is named at the first step."""

import copy
import logging

import pytest
import torch
import transformers
from independent import distance, loss_and_gradient

from trl_plus.trainers.layouts import SHORT, kept_buffers, short_and_long

BORDER, BAR = 29, 1e-5
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.fixture(params=["longrope", "dynamic"])
def rope_model(request, tokenizer):
    """A model whose rotary factors depend on the longest row of a forward, as it was before any forward."""
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    if request.param == "longrope":
        own = {"max_position_embeddings": 512, "original_max_position_embeddings": BORDER, "rope_parameters": LONG}
        model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes | own))
    else:
        own = {"max_position_embeddings": BORDER, "rope_parameters": DYNAMIC}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | own))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def forgetful(model):
    """A copy of a model that has seen no other row at each forward: `dynamic` keeps the longest it has seen."""

    def forget(module, args, kwargs):
        for part in module.modules():
            if hasattr(part, "max_seq_len_cached"):
                part(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long))

    model = copy.deepcopy(model)
    model.register_forward_pre_hook(forget, with_kwargs=True)
    return model


CUTS = {
    "4x1 packed": (4, 1, {"layout": "packed"}),
    "2x2 shared": (2, 2, {"layout": "shared"}),
    "1x4 rows": (1, 4, {"layout": "rows"}),
    "1x4 packed, checkpointing": (1, 4, {"layout": "packed", "gradient_checkpointing": True}),
    "tokens": (4, 1, {"tokens_per_device": 100}),
}


def test_steps_of_rope_by_length_are_those_of_rows_alone(rope_model, pair_rows, make_trainer):
    rows, own = pair_rows(4, seed=3), None
    for name, (batch, accumulation, options) in CUTS.items():
        trainer = make_trainer(
            "SimPO", rows, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            trainer={"model": copy.deepcopy(rope_model)}, beta=2.0, gamma_beta_ratio=0.5, **options,
        )  # fmt: skip
        lengths = [
            len(r["prompt_ids"]) + len(r[f"{s}_ids"]) for r in trainer.train_dataset for s in ("chosen", "rejected")
        ]
        assert min(lengths) < BORDER < max(lengths)
        own = own or loss_and_gradient("SimPO", forgetful(rope_model), trainer.train_dataset, beta=2.0, gamma=1.0)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        gradient = {n: (before[n] - p.detach()).double() for n, p in trainer.model.named_parameters()}
        assert trainer.state.log_history[0]["loss"] == pytest.approx(own[0], rel=BAR), name
        assert distance(gradient, own[1]) < BAR, name


@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_reference_of_rope_by_length(method, rope_model, pair_rows, unpaired_rows, make_trainer, caplog):
    """Policy and reference are the same model in batches of different rows, precomputed ones included."""
    rows = pair_rows(6, seed=3) if method == "DPO" else unpaired_rows(6, seed=3)
    for batch in (1, 6):
        trainer = make_trainer(
            method, rows, reference=False, trainer={"model": copy.deepcopy(rope_model)}, precompute_ref_log_probs=True,
            precompute_ref_batch_size=batch, per_device_train_batch_size=2,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, "trl_plus"):
            trainer.train()
    assert "not its reference" not in caplog.text
    assert "not exact" not in caplog.text


def test_evaluation_of_rope_by_length(rope_model, pair_rows, make_trainer):
    losses = [
        make_trainer(
            "SimPO", pair_rows(4), per_device_eval_batch_size=size,
            trainer={"model": copy.deepcopy(rope_model), "eval_dataset": _dataset(pair_rows(6, seed=3))},
        ).evaluate()["eval_loss"]
        for size in (1, 4, 6)
    ]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 3, rel=BAR)


def _dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


# -- models in which rows depend on each other -------------------------------------------------------------------------


class Normalised(torch.nn.Module):
    """Batch normalisation over the features of a batch's tokens."""

    def __init__(self, size):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(size)

    def forward(self, states):
        return self.norm(states.mT).mT


class Capacity(torch.nn.Module):
    """Experts that take so many tokens of a batch and drop the rest."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        score = states.sum(-1).flatten()
        kept = torch.zeros_like(score).scatter(0, score.topk(min(12, len(score))).indices, 1.0)
        return self.inner(states) * kept.view(states.shape[:2])[..., None]


class Growing(torch.nn.Module):
    """A state that the longest row so far leaves behind."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.longest = inner, 0

    def forward(self, states):
        self.longest = max(self.longest, states.size(1))
        return self.inner(states) * (1 + self.longest / 100)


class Noisy(torch.nn.Module):
    """Noise in training, as routers have it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states * (1 + self.training * 0.01 * torch.randn_like(states)))


def changed(model, kind):
    layer = model.model.layers[0]
    if kind is Normalised:
        model.model.norm = Normalised(model.config.hidden_size)
    else:
        layer.mlp = kind(layer.mlp)
    return model


KINDS = {
    Normalised: "a longer row in the same batch",
    Capacity: "a longer row in the same batch",
    Growing: "leaves a state behind",
    Noisy: "draws random numbers in training",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_dependent_rows_are_named(kind, build_tiny_model, pair_rows, make_trainer, caplog):
    model = changed(build_tiny_model(0), kind)
    trainer = make_trainer("SimPO", pair_rows(4), trainer={"model": model})
    with caplog.at_level(logging.WARNING, "trl_plus"):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "not exact" in record.getMessage()]
    assert len(said) == 1
    assert KINDS[kind] in said[0]


@pytest.mark.parametrize("method", ["SimPO", "KTO"])
def test_looking_leaves_no_trace(method, pair_rows, unpaired_rows, make_trainer, caplog, monkeypatch):
    """Independent rows: nothing is printed, and the same bits come out as without the look."""
    rows = unpaired_rows(6) if method == "KTO" else pair_rows(6)
    ends = []
    for looked in (None, True):
        torch.manual_seed(0)
        trainer = make_trainer(method, rows, max_steps=2)
        trainer._rows_were_alone = looked
        with caplog.at_level(logging.WARNING, "trl_plus"):
            trainer.train()
        ends.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    assert "not exact" not in caplog.text
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_short_and_long():
    mask = torch.tensor([[1] * 12, [1] * 8 + [0] * 4])
    ids = torch.arange(24).view(2, 12)
    rows = short_and_long({"input_ids": ids, "attention_mask": mask, "completion_mask": mask})
    assert rows["attention_mask"].sum(1).tolist() == [4, 12]
    assert rows["input_ids"][1].equal(ids[0])
    assert SHORT > 4
    assert short_and_long({"input_ids": ids, "attention_mask": mask.flip(1), "completion_mask": mask}) is None
    images = {"input_ids": ids, "attention_mask": mask, "completion_mask": mask, "pixel_values": ids}
    assert short_and_long(images) is None


def test_buffers_are_put_back():
    norm = torch.nn.BatchNorm1d(3)
    with kept_buffers(norm):
        norm(torch.randn(4, 3))
        assert norm.running_mean.any()
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0
