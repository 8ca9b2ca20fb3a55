"""Which rows are evaluated, which of them are pairs, and what is refused."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.errors import DataError
from trl_plus.evaluation.rows import held_out_rows
from trl_plus.recipes.recipe import load_recipe
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import load_processor


def call(*words):
    return CliRunner().invoke(app, normalise([str(word) for word in words]))


@pytest.fixture
def rows_of(tmp_path, tiny_model_dir):
    """rows_of(method, held-out rows, rows=None, by=None, **keys) -> HeldOut."""

    def _rows(method, held_out, rows=None, by=None, **keys):
        for split in ("train", "test"):
            lines = "".join(json.dumps(row) + "\n" for row in held_out)
            (tmp_path / f"rows_{split}.jsonl").write_text(lines)
        values = {
            "method": method,
            "model_name_or_path": tiny_model_dir,
            "dataset_name": str(tmp_path / "rows"),
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            **keys,
        }
        path = tmp_path / "r.yaml"
        path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))
        objects = build(load_recipe(str(path)))
        return held_out_rows(objects, load_processor(objects), rows, by)

    return _rows


def test_single_rows_are_paired_by_prompt(rows_of):
    def row(prompt, completion, label):
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [row("a?", " b", True), row("a?", " c", False), row("d?", " e", True), row("a?", " f", False)]
    found = rows_of("kto", rows)
    assert found.pairs.tolist() == [[0, 1], [0, 3]]
    assert found.prompts.tolist() == [0, 0, 1, 0]


def test_pairs_that_were_taken_apart_stay_pairs(rows_of, pair_rows):
    """Two pairs of one prompt: four comparisons by prompt, two by row."""
    first, second = pair_rows(2, 3)
    found = rows_of("kto", [first, {**second, "prompt": first["prompt"]}])
    assert len(found.pairs) == 2
    assert found.labels[found.pairs[:, 0]].all()
    assert not found.labels[found.pairs[:, 1]].any()
    sides = [[found.rows[int(i)]["completion_ids"] for i in pair] for pair in found.pairs]
    assert len({tuple(map(tuple, pair)) for pair in sides}) == 2
    assert len(set(found.prompts.tolist())) == 1


def test_rows_that_do_not_fit_are_counted(rows_of, pair_rows):
    found = rows_of("simpo", pair_rows(20), max_length=30, overlong="drop")
    assert 0 < found.dropped < 20
    assert len(found.rows) == 20 - found.dropped
    twice = rows_of("kto", pair_rows(20), max_length=30, overlong="drop")
    assert len(twice.rows) == 40 - twice.dropped


def test_how_many_rows(rows_of, pair_rows):
    rows = pair_rows(20)
    assert len(rows_of("simpo", rows).rows) == 20
    assert len(rows_of("simpo", rows, max_eval_rows=7).rows) == 7
    assert len(rows_of("simpo", rows, rows=5, max_eval_rows=7).rows) == 5
    assert len(rows_of("simpo", rows, rows=-1, max_eval_rows=7).rows) == 20


def test_sources(rows_of, pair_rows):
    rows = [{**row, "source": "ab"[i % 2], "difficulty": i // 2} for i, row in enumerate(pair_rows(4))]
    assert rows_of("simpo", rows).sources.tolist() == list("abababab")
    assert rows_of("simpo", rows, by="difficulty").sources.tolist() == list("00110011")
    assert rows_of("kto", rows).sources.tolist() == list("abababab")
    assert rows_of("simpo", pair_rows(4)).sources is None
    with pytest.raises(DataError, match="prompt, chosen, rejected, source, difficulty"):
        rows_of("simpo", rows, by="kind")


def test_entries_of_a_mixture_are_sources(rows_of, pair_rows, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(6, seed)))
    entries = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")]
    found = rows_of("simpo", pair_rows(2), dataset_name=None, datasets=entries, eval_fraction=0.5)
    assert found.source_column == "datasets"
    assert {name.split("/")[-1] for name in found.sources.tolist()} == {"one.jsonl", "two.jsonl"}


def test_streams_need_a_number(rows_of, pair_rows):
    with pytest.raises(DataError, match="--rows"):
        rows_of("simpo", pair_rows(6), dataset_streaming=True, max_steps=1)
    assert len(rows_of("simpo", pair_rows(6), rows=4, dataset_streaming=True, max_steps=1).rows) == 4


def test_nothing_held_out_is_an_error(rows_of, pair_rows):
    with pytest.raises(DataError, match="max_eval_rows is 0: name some with eval_dataset_name"):
        rows_of("simpo", pair_rows(6), max_eval_rows=0)


def test_batches_are_the_trainers(rows_of, pair_rows, make_batches):
    rows = [{**row, "weight": 1 + i % 2} for i, row in enumerate(pair_rows(7))]
    found = rows_of("simpo", rows, max_length=30)
    for (index, ours), theirs in zip(found.batches(3), make_batches(rows, 3, 30), strict=True):
        assert set(ours) == set(theirs)
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        assert found.weights[index][: len(index) // 2].tolist() == theirs["weight"].tolist()


@pytest.fixture
def make_batches(tmp_path, tiny_model_dir, tokenizer):
    from datasets import Dataset

    from trl_plus import SimPOConfig, SimPOTrainer

    def _make(rows, size, max_length):
        args = SimPOConfig(
            str(tmp_path / "t"), per_device_eval_batch_size=size, max_length=max_length, report_to=[], use_cpu=True,
            bf16=False,
        )  # fmt: skip
        dataset = Dataset.from_list(rows)
        trainer = SimPOTrainer(
            tiny_model_dir, args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
        )
        return list(trainer.get_eval_dataloader())

    return _make


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_on_a_run_and_on_a_checkpoint(simpo_run):
    last, early = (
        json.loads(call("evaluate", folder, "--json").stdout) for folder in (simpo_run, simpo_run / "checkpoint-1")
    )
    assert last["tuned"] == str(simpo_run)
    assert [group["name"] for group in last["sources"]] == ["a", "b", "c"]
    margins = [value["pairs"]["models"]["tuned"]["reward"]["margin"]["value"] for value in (early, last)]
    assert margins[0] != margins[1]
    assert early["pairs"]["models"]["base"] == last["pairs"]["models"]["base"]


def test_the_command_with_a_recipe_and_other_weights(simpo_run, tmp_path):
    """An adapter, the model it is merged into, and the base itself, all by --model."""
    recipe = simpo_run / "recipe.resolved.yaml"
    run = json.loads(call("evaluate", simpo_run, "--json").stdout)["pairs"]
    assert call("merge", simpo_run, tmp_path / "merged").exit_code == 0
    for other in (simpo_run, tmp_path / "merged"):
        found = json.loads(call("evaluate", recipe, "--model", other, "--json").stdout)["pairs"]
        ours, theirs = (value["models"]["tuned"]["reward"]["margin"]["value"] for value in (found, run))
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_another_base_is_said(simpo_run, other_model_dir):
    done = call("evaluate", simpo_run, "--rows", 6, f"model_name_or_path={other_model_dir}")
    assert done.exit_code == 0, done.output
    assert f"is put on {other_model_dir} here" in done.output


def test_a_base_that_changed_since_the_run_is_said(simpo_run, tmp_path):
    shutil.copytree(simpo_run, tmp_path / "run")
    assert "have changed since" not in call("evaluate", tmp_path / "run", "--rows", 6).output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["model_fingerprint"]) == 32
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({**metrics, "model_fingerprint": "0" * 32}))
    output = " ".join(call("evaluate", tmp_path / "run", "--rows", 6).output.split())
    assert f"{metrics['model']} have changed since" in output
    assert "Fix: put the earlier files back, or train again." in output


def test_rows_that_may_have_been_trained_on_are_said(simpo_run):
    data = simpo_run.parent / "rows_train.jsonl"
    done = call("evaluate", simpo_run, f"dataset_name={data}", "eval_fraction=0.5")
    assert done.exit_code == 0, done.output
    assert "eval_fraction of the command line may hold out rows that the run was trained on" in done.output


def test_out_of_memory_names_the_cure(simpo_run, monkeypatch):
    import torch

    from trl_plus.evaluation import run

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(run, "score_rows", fail)
    done = call("evaluate", simpo_run)
    assert done.exit_code == 1
    assert "lower per_device_eval_batch_size (now 4)" in done.output
    assert "Traceback" not in done.output


def test_tables_of_the_command(simpo_run):
    done = call("evaluate", simpo_run)
    assert done.exit_code == 0, done.output
    for text in ("By the method's reward", "base", "tuned", "change", "by length difference", "by source"):
        assert text in done.output


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "{empty}"], "holds neither an adapter nor a model"),
        (["--model", "{other}"], "could not be loaded"),
        (["--by", "kind"], "no such column"),
        (["betta=1"], "beta"),
    ],
)
def test_what_is_refused(words, said, simpo_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    words = [word.format(empty=tmp_path / "empty", other=tmp_path / "other") for word in words]
    done = call("evaluate", simpo_run, *words)
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_a_run_without_weights_names_its_checkpoints(simpo_run, tmp_path):
    import shutil

    killed = tmp_path / "killed"
    shutil.copytree(simpo_run, killed)
    (killed / "adapter_model.safetensors").unlink()
    done = call("evaluate", killed)
    assert done.exit_code == 2
    assert "checkpoint-2 for example" in done.output


@pytest.mark.parametrize("method, said", [("dpo", True), ("simpo", False)])
def test_a_reference_in_the_data_is_named(method, said, rows_of, pair_rows, tmp_path):
    rows_of(method, [{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0} for row in pair_rows(3)])
    found = call("evaluate", tmp_path / "r.yaml", "--json")
    notes = " ".join(json.loads(found.stdout)["notes"])
    assert ("ref_chosen_logps and ref_rejected_logps" in notes) == said
