"""`trl-plus evaluate` leaves its result with the weights that it judged, and `report` shows it, also a stale one."""

import json
import shutil

import jsonschema
import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.evaluation.output import schema
from trl_plus.report.page import run_page
from trl_plus.report.run import read_run
from trl_plus.runs.weights import fingerprint


def call(*words):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def evaluated(simpo_run, tmp_path_factory):
    """A run with its evaluation, and what `--json` printed."""
    run = shutil.copytree(simpo_run, tmp_path_factory.mktemp("evaluated") / "run")
    return run, json.loads(call("evaluate", run, "--json"))


@pytest.fixture
def run(evaluated, tmp_path):
    return shutil.copytree(evaluated[0], tmp_path / "run")


def train_further(run):
    """Other weights in the files that hold them."""
    path = run / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stale(run):
    return read_run(str(run)).evaluation.stale


def test_it_is_kept_as_it_is_printed(evaluated):
    run, printed = evaluated
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept == printed
    jsonschema.Draft202012Validator(schema()).validate(kept)
    assert kept["weights"] == {"step": 2, "fingerprint": fingerprint(run)}
    assert [path.name for path in run.iterdir() if path.name.endswith(".part")] == []


def test_the_newest_wins_and_other_weights_are_not_kept(run):
    output = call("evaluate", run, "--rows", 8)
    assert f"Kept in {run}/evaluation.json; `trl-plus report` shows it." in " ".join(output.split()).replace("/ ", "/")
    assert json.loads((run / "evaluation.json").read_text())["rows"] == 8
    (run / "evaluation.json").unlink()
    call("evaluate", run, "--model", run / "checkpoint-1", "--rows", 8)
    assert not (run / "evaluation.json").exists()


def test_a_checkpoint_keeps_its_own(run):
    before = (run / "evaluation.json").read_bytes()
    call("evaluate", run / "checkpoint-1", "--rows", 8)
    assert json.loads((run / "checkpoint-1" / "evaluation.json").read_text())["weights"]["step"] == 1
    assert (run / "evaluation.json").read_bytes() == before


def test_a_folder_that_cannot_be_written_costs_no_figures(run, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    result = CliRunner().invoke(app, ["evaluate", str(run), "--rows", "8", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 8
    assert "could not be written (No space left on device)" in result.stderr


def test_stale_when_trained_further(run):
    assert stale(run) == ""
    train_further(run)
    assert stale(run) == "It judged the weights of step 2, and the folder holds others now. Evaluate the run again."


def test_stale_while_a_resumed_run_has_not_saved(run):
    journal = run / "journal.jsonl"
    again = {"event": "begin", "time": "2999-01-01T00:00:00+00:00", "step": 0}
    journal.write_text(journal.read_text() + json.dumps(again) + "\n")
    assert "resumed after it" in stale(run)
    end = {"event": "end", "time": "2999-01-01T00:01:00+00:00", "step": 2, "outcome": "finished", "error": None}
    journal.write_text(journal.read_text() + json.dumps(end) + "\n")
    assert stale(run) == ""  # it ended in the very same weights


def test_an_evaluation_by_an_earlier_version(run):
    edit(run / "evaluation.json", weights=None)
    assert stale(run) == "It does not record which weights it judged."


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"rows": "many"}'])
def test_what_is_no_evaluation_is_left_out_and_said(run, content):
    (run / "evaluation.json").write_text(content)
    found = read_run(str(run))
    assert found.evaluation is None
    assert any("evaluation.json" in problem for problem in found.problems)


def cells(browser, table):
    rows = f"[...document.querySelectorAll('{table} tbody tr')].map((x) => [...x.cells].map((c) => c.innerText))"
    return {row[0]: row[1:] for row in browser.evaluate(rows)}


def test_the_page_shows_base_against_tuned(show, run):
    content = json.loads((run / "evaluation.json").read_text())
    browser = show(run_page(read_run(str(run))))
    table = cells(browser, "table.evaluation")
    for model, place in (("base", 0), ("tuned", 1)):
        found = content["pairs"]["models"][model]["reward"]["accuracy"]
        shown = table["Accuracy by reward"][place].split("\n")
        assert shown[0] == f"{found['value']:.3f}"
        assert shown[-1] == f"{found['low']:.3f} to {found['high']:.3f}"
    margin = content["pairs"]["models"]["tuned"]["logp_per_token"]["margin"]["value"]
    assert table["Margin by log-probability per token"][1].split("\n")[0] == f"{margin:+.4f}"
    assert table["Change of margin by reward"][0] == "-"
    text = browser.evaluate("document.body.textContent")
    assert "30 held-out rows of " in text
    assert "source a" in text
    assert "length difference" in text
    assert "Out of date" not in text
    assert browser.requests == [browser.evaluate("location.href")]
    assert not browser.problems


def test_the_page_marks_a_stale_one(show, run):
    train_further(run)
    browser = show(run_page(read_run(str(run))))
    assert "Out of date. It judged the weights of step 2" in browser.evaluate(
        "document.querySelector('.stale').innerText"
    )


def test_hostile_text_runs_nothing(show, run):
    evil = "<img src=x onerror=alert(1)></details><script>alert(1)</script>"
    content = json.loads((run / "evaluation.json").read_text())
    content["sources"][0]["name"] = content["dataset"] = evil
    edit(run / "evaluation.json", **{**content, "notes": [evil]})
    browser = show(run_page(read_run(str(run))))
    assert not browser.dialogs
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert evil in browser.evaluate("document.body.textContent")


def test_two_runs_with_one_evaluation(show, run, make_run):
    browser = show(run_page(read_run(str(run)), read_run(str(make_run("other")))))
    assert browser.evaluate("document.querySelectorAll('table.evaluation').length") == 1
    assert "run: trl-plus evaluate" in browser.evaluate("document.body.innerText")
