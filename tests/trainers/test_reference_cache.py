"""The file of reference log-probabilities: whole or absent, and never believed when damaged."""

import functools
import os
import signal
import subprocess
import sys

import datasets
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import trl_plus
from trl_plus.trainers import reference_cache

COLUMNS = {"ref_chosen_logps": torch.tensor([-1.5, -2.0]), "ref_rejected_logps": torch.tensor([-3.0, -0.5])}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new" / "key.safetensors"
    assert reference_cache.read(path, 2) is None
    reference_cache.write(path, COLUMNS)
    assert same(reference_cache.read(path, 2), COLUMNS)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other rows"])
def test_a_damaged_file_is_not_believed(damage, tmp_path, caplog):
    path = tmp_path / "key.safetensors"
    reference_cache.write(path, COLUMNS)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-3]
    elif damage == "flipped":
        content[-2] ^= 1
    elif damage == "empty":
        content = b""
    path.write_bytes(content)
    assert reference_cache.read(path, 3 if damage == "other rows" else 2) is None
    assert "computed again" in caplog.text


def test_an_error_before_the_rename_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "key.safetensors"

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        reference_cache.write(path, COLUMNS)
    assert not list(tmp_path.iterdir())


def test_killed_before_the_rename(tmp_path):
    path = tmp_path / "key.safetensors"
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from trl_plus.trainers import reference_cache\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "reference_cache.write(Path(sys.argv[1]), {'ref_logps': torch.ones(2)})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert reference_cache.read(path, 2) is None


def test_a_digest_is_of_contents():
    weights = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros(2, 2)}
    digest = reference_cache.digest_of(weights)
    assert digest == reference_cache.digest_of(dict(reversed(weights.items())))
    for other in (
        weights | {"a": weights["a"].float()},
        weights | {"b": torch.zeros(4)},
        weights | {"b": torch.tensor([[0.0, 0.0], [0.0, 1.0]])},
    ):
        assert reference_cache.digest_of(other) != digest


def test_rows_are_told_apart_by_their_tokens():
    rows = Dataset.from_dict({"prompt_ids": [[1], [2, 3]], "chosen_ids": [[4], [5]], "text": ["x", "y"]})
    columns = ["prompt_ids", "chosen_ids"]
    digest = reference_cache.rows_digest(rows, columns)
    renamed = rows.remove_columns("text").add_column("text", ["other", "text"])
    assert reference_cache.rows_digest(renamed, columns) == digest
    assert reference_cache.rows_digest(rows.select([1, 0]), columns) != digest


# -- in the trainers ------------------------------------------------------------------------------------------------

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def build(make_trainer, pair_rows, unpaired_rows, tmp_path, monkeypatch):
    """build("DPO") -> (trainer, forward passes while it was built), with a folder of this test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(method="DPO", rows=None, precompute=True, reference=True, **kwargs):
        passes = []
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs: passes.append(1) if type(module).__name__ == "Qwen2Model" else None
        )
        rows = rows or (unpaired_rows if method == "KTO" else pair_rows)(6)
        try:
            trainer = make_trainer(method, rows, reference=reference, precompute_ref_log_probs=precompute, **kwargs)
        finally:
            handle.remove()
        return trainer, len(passes)

    return make


def files(tmp_path):
    return sorted(tmp_path.joinpath("cache", "trl_plus", "reference").iterdir())


def trained_adapter(folder, fill=0.1, alpha=8):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(parameter, fill)
    return model


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize("kind", ["given", "path", "instance", "fresh adapter", "trained adapter"])
def test_the_second_run_computes_nothing(method, kind, build, tmp_path, tiny_model_dir, caplog):
    def again():
        extra = {"path": {"model": tiny_model_dir}, "fresh adapter": {"peft_config": LORA}}.get(kind, {})
        if kind == "trained adapter":
            extra = {"model": trained_adapter(tiny_model_dir)}
        more = {"loss_type": "apo_zero_unpaired"} if method == "KTO" and kind == "path" else {}
        return build(method, reference=kind == "given", trainer=extra, **more)

    first, computed = again()
    assert computed > 0
    assert "computed, and kept in" in caplog.text
    kept = files(tmp_path)
    assert [file.suffix for file in kept] == [".safetensors"]
    caplog.clear()
    second, computed = again()
    assert computed == 0
    assert f"read from {kept[0]}" in caplog.text
    assert files(tmp_path) == kept
    assert first.train_dataset.column_names == second.train_dataset.column_names
    for name in (name for name in first.train_dataset.column_names if name.startswith("ref_")):
        assert first.train_dataset[name][:] == second.train_dataset[name][:]
    second.train()


def changed_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1.0
    return model


@pytest.mark.parametrize(
    "change", ["weights", "config", "rows", "order", "max_length", "truncation_mode", "ld_alpha", "pad token"]
)
def test_what_changes_a_log_probability_is_computed_again(
    change, build, pair_rows, other_model_dir, tokenizer, tmp_path, request
):
    build(max_length=24)
    settings, extra, rows = {"max_length": 24}, {}, pair_rows(6)
    if change in ("weights", "config"):
        reference = (changed_model if change == "weights" else AutoModelForCausalLM.from_pretrained)(other_model_dir)
        if change == "config":
            reference.config.rms_norm_eps = 1e-2
        extra["ref_model"] = reference
    elif change in ("rows", "order"):
        rows = rows[::-1] if change == "order" else pair_rows(6, 1)
    elif change == "pad token":
        request.addfinalizer(functools.partial(setattr, tokenizer, "pad_token", tokenizer.pad_token))
        tokenizer.pad_token = "<|im_start|>"
    else:
        settings |= {"max_length": {"max_length": 25}, "ld_alpha": {"ld_alpha": 0.5}}.get(
            change, {"truncation_mode": "keep_end"}
        )
    _, computed = build(rows=rows, trainer=extra, **settings)
    assert computed > 0
    assert len(files(tmp_path)) == 2


def test_keep_end_follows_max_length(build, pair_rows):
    """TRL's file is the same for every max_length."""
    columns = [
        build(truncation_mode="keep_end", max_length=size)[0].train_dataset["ref_chosen_logps"][:] for size in (16, 24)
    ]
    assert columns[0] != columns[1]


@pytest.mark.parametrize("change", [{"fill": 0.2}, {"alpha": 16}])
def test_another_reference_adapter_is_computed_again(change, build, tiny_model_dir):
    for kwargs in ({}, change):
        _, computed = build(reference=False, trainer={"model": trained_adapter(tiny_model_dir, **kwargs)})
        assert computed > 0


def test_a_damaged_file_is_computed_again(build, tmp_path, caplog):
    first, _ = build()
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    second, computed = build()
    assert computed > 0
    assert "is damaged" in caplog.text
    assert build()[1] == 0
    assert first.train_dataset["ref_chosen_logps"][:] == second.train_dataset["ref_chosen_logps"][:]


def test_a_folder_that_cannot_be_written_to(build, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match="set HF_DATASETS_CACHE"):
        build()


@pytest.mark.parametrize("kind", ["path", "instance", "adapter"])
def test_the_loss_is_that_of_a_reference_in_memory(kind, build, tiny_model_dir):
    losses = []
    for precompute in (False, True, True):
        torch.manual_seed(0)
        extra = {"path": {"model": tiny_model_dir}, "adapter": {"model": trained_adapter(tiny_model_dir)}}.get(kind, {})
        trainer, _ = build(precompute=precompute, reference=False, trainer=extra, max_steps=3)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == losses[1]


@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_training_an_adapter_leaves_its_reference(kind, build, pair_rows, tiny_model_dir, tmp_path, caplog):
    extra = {"peft_config": LORA} if kind == "fresh" else {"model": trained_adapter(tiny_model_dir)}
    trainer, _ = build(reference=False, trainer=extra)
    rows = Dataset.from_list(pair_rows(5, 2))
    before = trainer.evaluate(rows)["eval_loss"]
    kept = files(tmp_path)
    trainer.train()
    caplog.clear()
    assert trainer.evaluate(rows)["eval_loss"] != before
    assert "read from" in caplog.text
    assert files(tmp_path) == kept


def test_a_file_that_cannot_be_kept_costs_no_run(build, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(reference_cache, "write", fail)
    trainer, _ = build()
    assert "not kept (no space left on device)" in caplog.text
    assert not files(tmp_path)
    trainer.train()


@pytest.mark.parametrize("method", ["DPO", "KTO"])
@pytest.mark.parametrize("settings, rows", [
    ({}, 8),  # four training micro-batches
    ({"precompute_ref_batch_size": 3}, 3),
    ({"tokens_per_device": 1}, 1),  # as many of the longest row as fit
    ({"tokens_per_device": 10_000}, 17),
])  # fmt: skip
def test_a_batch_of_the_reference(
    method, settings, rows, make_trainer, pair_rows, unpaired_rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    trainer_class, sizes = getattr(trl_plus, f"{method}Trainer"), []
    compute = trainer_class.compute_ref_log_probs

    def spy(self, model, inputs):
        sizes.append(len(inputs["input_ids"]) // (1 if method == "KTO" else 2))
        return compute(self, model, inputs)

    monkeypatch.setattr(trainer_class, "compute_ref_log_probs", spy)
    data = (unpaired_rows if method == "KTO" else pair_rows)(17)
    trainer = make_trainer(method, data, precompute_ref_log_probs=True, per_device_train_batch_size=2, **settings)
    assert max(sizes) == rows
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    alone = make_trainer(method, data, precompute_ref_log_probs=True, precompute_ref_batch_size=1)
    for name in (name for name in alone.train_dataset.column_names if name.startswith("ref_")):
        assert trainer.train_dataset[name][:] == pytest.approx(alone.train_dataset[name][:], abs=1e-4)
