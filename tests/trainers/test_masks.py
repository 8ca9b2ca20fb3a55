"""Response-only masks in every loss: no prompt token contributes to any term."""

import pytest
import torch

import trl_plus.trainers.base
import trl_plus.trainers.kto
from trl_plus.forward.score import score

METHODS = [
    ("SimPO", {"sft_weight": 1.0}),
    ("CPO", {}),
    ("ORPO", {}),
    ("ORPO", {"odds": "token"}),
    ("DPO", {"loss_type": ["sigmoid", "sft"]}),
    ("DPO", {"loss_type": "ipo"}),
    ("KTO", {}),
]


def rows_for(method, pair_rows, unpaired_rows):
    return unpaired_rows(4) if method == "KTO" else pair_rows(4)


def loss_and_metrics(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    return loss.item(), trainer.metric_means("train")


@pytest.mark.parametrize("method, config", METHODS)
def test_prompt_labels_change_nothing(method, config, make_trainer, pair_rows, unpaired_rows, monkeypatch):
    """Scores the prompt as well, with garbage in its place, and expects the same loss and the same metrics."""
    rows = rows_for(method, pair_rows, unpaired_rows)
    clean = loss_and_metrics(make_trainer(method, rows, **config))

    def with_prompt_scored(model, batch, *, scored=None, router=False):
        scores = score(model, batch, scored=batch["attention_mask"], router=router)
        garbage = torch.full_like(scores.logps, 3.25)
        return type(scores)(**{**vars(scores), "logps": torch.where(scores.mask, scores.logps, garbage)})

    for module in (trl_plus.trainers.base, trl_plus.trainers.kto):
        monkeypatch.setattr(module, "score", with_prompt_scored)
    dirty = loss_and_metrics(make_trainer(method, rows, **config))
    assert dirty[0] == pytest.approx(clean[0], rel=1e-6)
    # entropy and logits are averaged by the same mask, but `is_top1` and they are zero on unscored tokens only
    for name in clean[1]:
        assert dirty[1][name] == pytest.approx(clean[1][name], rel=1e-5, abs=1e-7), name


def test_orpo_full_scope_reads_the_prompt(make_trainer, pair_rows):
    """The authors' NLL over prompt and completion is another number, so the option is not silently ignored."""
    completion = loss_and_metrics(make_trainer("ORPO", pair_rows(4)))[1]
    full = loss_and_metrics(make_trainer("ORPO", pair_rows(4), nll_scope="full"))[1]
    assert full["nll_loss"] != pytest.approx(completion["nll_loss"], rel=1e-3)
    assert full["log_odds_ratio"] == pytest.approx(completion["log_odds_ratio"], rel=1e-6)


def test_simpo_by_hand_from_the_logits(make_trainer, pair_rows):
    """The whole way from tokens to loss against log-softmax of full logits, on completion tokens only."""
    trainer = make_trainer("SimPO", pair_rows(4), beta=2.0, gamma=1.0)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    mask = batch["completion_mask"][:, 1:]
    mean = (logps * mask).sum(1) / mask.sum(1)
    by_hand = -torch.nn.functional.logsigmoid(2.0 * (mean[:4] - mean[4:]) - 1.0).mean()
    assert loss_and_metrics(trainer)[0] == pytest.approx(by_hand.item(), rel=1e-5)
