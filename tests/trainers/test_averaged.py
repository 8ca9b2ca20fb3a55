"""Schedule-free optimizers train one set of weights and evaluate the average of another: that one is saved."""

import pytest
import torch
from safetensors.torch import load_file


class Averaging(torch.optim.SGD):
    """Schedule-free SGD in a few lines: gradients are taken at y, between the fast weights z and their average x."""

    MIX = 0.9

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group |= {"training": False, "steps": 0}

    def _move(self, training, mix):
        for group in self.param_groups:
            if group["training"] != training:
                group["training"] = training
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], mix)

    def train(self):
        self._move(True, 1 - self.MIX)

    def eval(self):
        self._move(False, 1 - 1 / self.MIX)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"], "a step outside training mode"
            group["steps"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                p.lerp_(z, 1 - 1 / self.MIX)  # y to x
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 1 / group["steps"]).lerp_(z, 1 - self.MIX)  # x to the next y


@pytest.fixture
def averaging(make_trainer, pair_rows, build_tiny_model):
    """averaging(method, rows=None, **config) -> a trainer with this optimizer and its own model."""

    def make(method="SimPO", rows=None, eval_rows=None, **config):
        from datasets import Dataset

        model = build_tiny_model(0)
        optimizer = Averaging(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        extra = {"model": model, "optimizers": (optimizer, schedule)}
        if eval_rows is not None:
            extra["eval_dataset"] = Dataset.from_list(eval_rows)
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4}
        return make_trainer(method, rows or pair_rows(12), trainer=extra, **settings | config)

    return make


def off(trainer, folder):
    """By how much saved weights differ from the averaged ones that the trainer ends with."""
    saved = load_file(f"{folder}/model.safetensors")
    return max(float((saved[n] - p).abs().max()) for n, p in trainer.model.named_parameters() if n in saved)


@pytest.mark.parametrize("evaluates", [False, True])
def test_the_averaged_weights_are_saved(evaluates, averaging, pair_rows, tmp_path):
    options = {"eval_rows": pair_rows(4, seed=2), "eval_strategy": "steps", "eval_steps": 2} if evaluates else {}
    trainer = averaging(output_dir=str(tmp_path), **options)
    trainer.train()
    state = trainer.optimizer.optimizer
    assert not any(group["training"] for group in state.param_groups)  # what `trainer.model` is used with next
    trainer.save_model(str(tmp_path / "final"))
    assert off(trainer, tmp_path / "final") == off(trainer, tmp_path / "checkpoint-6") == 0
    p = next(trainer.model.parameters())
    assert not torch.allclose(p, p.lerp(state.state[p]["z"], 1 - Averaging.MIX))  # the two sets differ


def test_resumed_to_the_same_bits(averaging, tmp_path):
    whole = averaging(output_dir=str(tmp_path / "a"))
    whole.train()
    resumed = averaging(output_dir=str(tmp_path / "b"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(a.equal(b) for a, b in pairs)


def test_the_best_model_is_not_averaged_again(averaging, pair_rows, tmp_path):
    trainer = averaging(
        output_dir=str(tmp_path), eval_rows=pair_rows(4, seed=2), eval_strategy="steps", eval_steps=1, save_steps=1,
        load_best_model_at_end=True, max_steps=3,
    )  # fmt: skip
    trainer.train()
    best = trainer.evaluate()["eval_loss"]
    assert off(trainer, trainer.state.best_model_checkpoint) == 0
    assert best == pytest.approx(trainer.state.best_metric, rel=1e-5)


def test_kto_reads_its_window_with_the_weights_in_training(averaging, unpaired_rows, tmp_path, monkeypatch):
    trainer = averaging("KTO", unpaired_rows(12), output_dir=str(tmp_path), save_steps=1, max_steps=3)
    modes, inner = [], trainer.z_ref

    def recorded(*args, **kwargs):
        modes.append(trainer.optimizer.optimizer.param_groups[0]["training"])
        return inner(*args, **kwargs)

    monkeypatch.setattr(trainer, "z_ref", recorded)
    trainer.train()
    assert modes == [True] * 3
