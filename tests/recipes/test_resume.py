"""Which checkpoint is complete, what a changed recipe may change, and how a run is stopped."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import load_recipe
from trl_plus.runs import checkpoint_files as files
from trl_plus.runs.resume import NEWEST, changes, check_same_run, find_checkpoint


def checkpoint(out, step):
    folder = out / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(100)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"b": torch.ones(100)}, folder / name)
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    return folder


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage, word", [(cut, "cut short"), (lambda path: path.unlink(), "missing|no weights")])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path, name, damage, word):
    older, newer = checkpoint(tmp_path, 3), checkpoint(tmp_path, 12)
    assert find_checkpoint(NEWEST, str(tmp_path)) == str(newer)
    damage(newer / name)
    said = []
    assert find_checkpoint(NEWEST, str(tmp_path), say=said.append) == str(older)
    assert len(said) == 1
    assert "checkpoint-12" in said[0]
    with pytest.raises(RecipeError, match=word):
        find_checkpoint(str(newer), str(tmp_path))


def test_a_checkpoint_that_does_not_exist(tmp_path):
    wanted = str(tmp_path / "checkpoint-99")
    with pytest.raises(RecipeError, match=r"checkpoint-99 does not exist: start without --resume\.$"):
        find_checkpoint(wanted, "out")
    for step in range(1, 8):
        checkpoint(tmp_path, step)
    with pytest.raises(RecipeError) as refused:
        find_checkpoint(wanted, "out")
    names = ", ".join(f"checkpoint-{step}" for step in (7, 6, 5, 4, 3))
    assert str(refused.value).endswith(f"does not exist: name one that {tmp_path} holds, {names} or 2 more.")


def test_half_written_state(tmp_path):
    cut(checkpoint(tmp_path, 3) / "trainer_state.json")
    with pytest.raises(
        RecipeError, match=r"no complete checkpoint .*trainer_state.json cannot be read.*without --resume"
    ):
        find_checkpoint(NEWEST, str(tmp_path))


def test_a_save_that_was_killed_is_named(tmp_path):
    checkpoint(tmp_path / files.UNFINISHED, 6)
    with pytest.raises(RecipeError, match=r"checkpoint-6: the run was killed while it was being saved"):
        find_checkpoint(NEWEST, str(tmp_path))
    assert files.clear_unfinished(tmp_path) == ["checkpoint-6"]
    assert not (tmp_path / files.UNFINISHED).exists()


def test_a_shard_is_missing(tmp_path):
    folder = checkpoint(tmp_path, 3)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert files.problem_of(folder) == "model-00001-of-00002.safetensors is missing"


def test_a_save_killed_while_it_replaces_loses_nothing(tmp_path, monkeypatch):
    """Between the two renames neither folder has the name: the old one gets it back, not the rubbish bin."""
    old, new = checkpoint(tmp_path, 3), checkpoint(tmp_path / files.UNFINISHED, 3)
    (old / "mark").touch()
    rename = os.rename

    def killed(source, target):
        if source == new:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        files.put_in_place(new, old)
    monkeypatch.undo()
    assert not old.exists()
    assert find_checkpoint(NEWEST, str(tmp_path)) == str(old)
    assert (old / "mark").exists()
    files.put_in_place(new, old)
    assert not (old / "mark").exists()
    assert files.problem_of(old) is None
    assert not (tmp_path / files.UNFINISHED).exists()


@pytest.mark.parametrize("moved", range(6))
def test_shards_are_named_when_all_of_them_are_there(tmp_path, moved, monkeypatch):
    """A process that is killed while it moves DeepSpeed's shards into the folder of a run."""
    run, part = tmp_path / "run", tmp_path / "run" / files.UNFINISHED / "model"
    shards = {f"global_step4/{rank}.pt" for rank in range(3)} | {"zero_to_fp32.py"}
    for name in {*shards, "latest"}:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text("global_step4")
    (run / "model.safetensors").write_text("of an earlier model")
    replace, calls = os.replace, []

    def killed(source, target):
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(replace(source, target))

    monkeypatch.setattr(os, "replace", killed)
    if moved < 5:
        with pytest.raises(KeyboardInterrupt):
            files.merge_into(part, run)
        assert not (run / "latest").exists()
        return
    files.merge_into(part, run)
    assert all((run / name).is_file() for name in {*shards, "latest"})
    assert not (run / "model.safetensors").exists()  # it would be loaded instead of the shards


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    folders = [checkpoint(tmp_path, step) for step in (2, 4, 6, 8)]
    for age, folder in enumerate(folders):
        os.utime(folder, (1000 + age, 1000 + age))
    files.rotate(tmp_path, folders[-1], str(folders[0]), 2)
    assert [files.step_of(path) for path in files.checkpoints(tmp_path)] == [8, 2]


@pytest.mark.parametrize(
    "words, refused",
    [
        (["learning_rate=1e-4"], True),
        (["seed=7"], True),
        (["beta=9.0"], True),
        (["max_length=99"], True),
        (["dataset_name=other"], True),
        (["per_device_train_batch_size=3"], True),
        (["per_device_train_batch_size=2", "gradient_accumulation_steps=4"], False),
        (["save_steps=7", "logging_steps=3", "output_dir=b"], False),
        (["nonfinite=skip"], False),  # the steps made so far are those of either run
        (["max_steps=50"], True),  # the learning rate falls to zero over the steps of the run
        (["max_steps=50", "lr_scheduler_type=constant"], True),
    ],
)
def test_what_may_change(write, words, refused):
    path = write(per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-5)
    changed, wrong = changes(load_recipe(path), load_recipe(path, words), 1, 1)
    assert len(changed) == len(words)
    assert bool(wrong) == refused


def test_a_longer_run_at_a_constant_rate(write):
    path = write(lr_scheduler_type="constant", warmup_steps=0, max_steps=10)
    old = load_recipe(path, ["warmup_ratio=null"])
    changed, wrong = changes(old, load_recipe(path, ["max_steps=20"]), 1, 1)
    assert changed == ["max_steps: 10 -> 20"]
    assert not wrong


def test_processes_times_rows(write):
    path = write(per_device_train_batch_size=4)
    assert changes(load_recipe(path), load_recipe(path, ["per_device_train_batch_size=2"]), 1, 2)[1] == []
    assert "processes: 1 -> 2" in changes(load_recipe(path), load_recipe(path), 1, 2)[1]


def test_force_and_silence(write, tmp_path):
    path = write(learning_rate=1e-5)
    folder, said = tmp_path / "checkpoint-1", []
    check_same_run(load_recipe(path), str(folder), False, said.append)
    assert "Nothing says" in said.pop()
    (tmp_path / "recipe.resolved.yaml").write_text(load_recipe(path).to_yaml())
    check_same_run(load_recipe(path), str(folder), False, said.append)
    assert said == []
    changed = load_recipe(path, ["learning_rate=2e-5"])
    with pytest.raises(RecipeError, match=r"learning_rate: 1e-05 -> 2e-05.*--force"):
        check_same_run(changed, str(folder), False, said.append)
    check_same_run(changed, str(folder), True, said.append)
    assert all("learning_rate: 1e-05 -> 2e-05" in line for line in said)


class Plain:
    world_size = 1
    save_only_model = True
    save_strategy = "steps"
    global_step = 4
    should_save = False


@pytest.fixture
def terminal():
    """SIGHUP as a shell leaves it; `nohup pytest` does not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish(number):
    from trl_plus.training.callbacks import StopOnSignal, Stopped

    before, plain = signal.getsignal(number), Plain()
    with StopOnSignal("out", print) as stop:
        with pytest.raises(KeyboardInterrupt):  # nothing to save yet
            os.kill(os.getpid(), number)
        stop.on_train_begin(plain, plain, plain)
        stop.on_step_end(plain, plain, plain)
        assert not plain.should_save
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher passing the same press on
        stop.on_step_end(plain, plain, plain)
        assert plain.should_save
        assert not plain.save_only_model
        with pytest.raises(Stopped, match=r"step 4: saved out/checkpoint-4.*--resume"):
            stop.on_save(plain, plain, plain)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before


def test_nohup_is_obeyed(terminal):
    from trl_plus.launch.processes import stopping_signals

    assert signal.SIGHUP in stopping_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stopping_signals()
