"""journal.jsonl and preflight.json: what a run keeps for its report, however it ends."""

import json
import logging
from datetime import UTC, datetime

import pytest

from trl_plus.preflight.as_json import from_json
from trl_plus.recipes.recipe import load_recipe
from trl_plus.report.page import outcome, run_page
from trl_plus.report.run import read_run
from trl_plus.runs.journal import COMMAND, Journal
from trl_plus.training.run import run


def events(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


# -- the journal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def said():
    return []


@pytest.fixture
def journal(tmp_path, said):
    return Journal(tmp_path, True, said.append)


def test_what_is_said_and_logged_is_kept(journal, tmp_path, said):
    logger = logging.getLogger("trl_plus")
    with journal.kept():
        journal.say("Too early.")
        journal.begin(True, processes=1)
        journal.training(0, 9)
        journal.say("A \u2028 note.")
        journal.say({"no": "sentence"})
        journal.step = 4
        journal.warn("Look!")
        logger.warning("Reference: %s.", "none", extra={"note": True})
        logger.warning("Reference log-probabilities are not kept.")  # a warning, whatever its first word
        logger.warning("Odd.")
        logger.info("Nothing.")
    logger.warning("Too late.")
    found = [(line["event"], line["step"], line.get("text") or line.get("outcome")) for line in events(tmp_path)]
    assert found == [
        ("begin", 0, None), ("training", 0, None), ("note", 0, "A \u2028 note."), ("warning", 4, "Look!"),
        ("note", 4, "Reference: none."), ("warning", 4, "Reference log-probabilities are not kept."),
        ("warning", 4, "Odd."), ("end", 4, "finished")
    ]  # fmt: skip
    assert said == [
        "Too early.",
        "A \u2028 note.",
        {"no": "sentence"},
        "Look!",
        "Reference: none.",
        "Reference log-probabilities are not kept.",
        "Odd.",
    ]


def begin_and_fail(journal, error, fresh=False, hold=False):
    with journal.kept():
        journal.begin(fresh, hold)
        raise error


@pytest.mark.parametrize(
    "error, ending", [(KeyboardInterrupt(), ("stopped", None)), (RuntimeError("bad\nmore"), ("failed", "bad"))]
)
def test_how_it_ended(journal, tmp_path, error, ending):
    with pytest.raises(type(error)):
        begin_and_fail(journal, error)
    assert (events(tmp_path)[-1]["outcome"], events(tmp_path)[-1]["error"]) == ending


def test_a_refused_run_leaves_the_journal_of_the_last_one(journal, tmp_path):
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(ValueError), journal.kept():
        raise ValueError("refused before it began")
    assert events(tmp_path) == [{}]


def test_events_are_held_until_the_folder_is_taken_over(journal, tmp_path):
    earlier = '{"event": "begin", "time": "2026-01-02T03:04:05+00:00"}\n'
    (tmp_path / "journal.jsonl").write_text(earlier)
    with pytest.raises(ValueError):
        begin_and_fail(journal, ValueError("refused by the trainer"), fresh=True, hold=True)
    assert journal.began() > datetime(2026, 1, 3, tzinfo=UTC)
    assert (tmp_path / "journal.jsonl").read_text() == earlier
    with journal.kept():
        journal.begin(True, hold=True)
        journal.say("Held.")
        (tmp_path / "journal.jsonl").unlink()  # moved
        journal.take_over()
        journal.say("Written.")
    kinds = [line.get("text", line["event"]) for line in events(tmp_path)]
    assert kinds == ["begin", "Held.", "Written.", "end"]


def test_fresh_and_resumed(tmp_path):
    for fresh in (True, False, True):
        with Journal(tmp_path, True, lambda what: None).kept():
            pass
        journal = Journal(tmp_path, True, lambda what: None)
        with journal.kept():
            journal.begin(fresh)
        counts = len(events(tmp_path))
        assert counts == (2 if fresh else 4)


def test_only_the_main_process_writes(tmp_path):
    journal = Journal(tmp_path, False, lambda what: None)
    with journal.kept():
        journal.begin(True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_hides_no_error(journal, tmp_path, capsys):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(RuntimeError, match="the real one"):
        begin_and_fail(journal, RuntimeError("the real one"))
    assert capsys.readouterr().err.count("cannot be written") == 1


# -- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, monkeypatch, tiny_model_dir, pair_rows):
    monkeypatch.chdir(tmp_path)
    rows = pair_rows(22)
    for split, part in (("train", rows[:16]), ("test", rows[16:])):
        (tmp_path / f"pairs_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    values = {
        "method": "dpo", "model_name_or_path": tiny_model_dir, "dataset_name": "./pairs", "output_dir": "out",
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "use_peft": True, "gradient_checkpointing": False,
        "logging_steps": 1, "save_steps": 2, "max_steps": 4, "disable_tqdm": True, "use_cpu": True, "bf16": False,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return "r.yaml"


def train(recipe, *overrides, resume=None, preflight=True):
    return run(load_recipe(recipe, overrides), resume, lambda what: None, preflight=preflight)


def test_a_run_and_its_report(recipe, tmp_path, monkeypatch):
    def odd(logs, setup):
        return "Odd: raise `beta`." if len(logs) == 3 else None

    monkeypatch.setattr("trl_plus.trainers.watch.RULES", (odd,))
    monkeypatch.setattr("trl_plus.trainers.watch.WINDOW", 1)  # rules are asked at every log
    monkeypatch.setenv(COMMAND, "trl-plus train r.yaml")
    train(recipe)
    out = tmp_path / "out"
    kinds = [line["event"] for line in events(out)]
    assert (kinds[0], kinds[-1]) == ("begin", "end")
    begin = events(out)[0]
    assert begin["command"] == "trl-plus train r.yaml"
    assert begin["versions"]["trl"]
    assert begin["devices"]["cpu"]
    assert [line["steps"] for line in events(out) if line["event"] == "training"] == [4]
    texts = {line["text"]: line["event"] for line in events(out) if "text" in line}
    assert texts["Reference: the model with its adapter switched off."] == "note"
    (warning,) = [line for line in events(out) if line["event"] == "warning"]
    assert (warning["step"], warning["text"]) == (3, "Odd: raise `beta`.")
    looked = from_json(json.loads((out / "preflight.json").read_text()))
    assert [split.checked for split in looked.splits] == [16, 6]

    found = read_run("out")
    assert outcome(found).state == "clean"
    assert not found.problems
    page = run_page(found)
    assert "Odd: raise <code>beta</code>." in page
    assert page.count("<figure") > 6

    monkeypatch.delenv(COMMAND)
    train(recipe, preflight=False)  # another run in the same folder: the first one is moved
    assert not (out / "preflight.json").exists()
    assert [line["event"] for line in events(out)].count("begin") == 1
    assert events(out)[0]["command"] is None


def test_a_run_that_fails_and_goes_on(recipe, tmp_path, monkeypatch):
    from trl_plus import DPOTrainer as Trainer

    steps = Trainer.training_step

    def fails(self, *arguments, **keywords):
        if self.state.global_step == 3:
            raise RuntimeError("the machine is on fire")
        return steps(self, *arguments, **keywords)

    monkeypatch.setattr(Trainer, "training_step", fails)
    with pytest.raises(RuntimeError):
        train(recipe)
    found = outcome(read_run("out"))
    assert (found.state, found.sentence) == ("error", "Failed at step 4 of 4: the machine is on fire")
    assert "<polyline" in run_page(read_run("out"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train(recipe, resume="newest")
    again = read_run("out")
    assert outcome(again).sentence == "Finished."
    assert "Resumed at step 2." in outcome(again).more
    assert [line["event"] for line in events(tmp_path / "out")].count("begin") == 2
    assert again.preflight is not None  # of the fresh run: the rows are the same
