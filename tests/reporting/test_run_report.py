"""`trl-plus report`: what it reads, what it says of runs that ended in every way, how it fails."""

import json
import re

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.preflight.as_json import as_json, from_json
from trl_plus.report import page
from trl_plus.report.curves import panels_of
from trl_plus.report.page import run_page
from trl_plus.report.run import read_run

END = {"event": "end", "step": 7}


def call(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


# -- the command ----------------------------------------------------------------------------------------------------


def test_where_the_page_goes(make_run, tmp_path):
    run = make_run()
    assert call(run).output == f"Wrote {run}/report.html.\n"
    assert "<title>Report: run</title>" in (run / "report.html").read_text()
    assert call(run, "--out", tmp_path / "new" / "a.html").exit_code == 0
    assert (tmp_path / "new" / "a.html").is_file()


def test_fast_and_without_torch(make_run, starts_of):
    run = make_run()
    code = (
        "import sys\nfrom trl_plus.cli import main\n"
        f"sys.argv = ['trl-plus', 'report', {str(run)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert starts_of(code) < 180
    assert (run / "report.html").is_file()


def test_what_is_no_run(make_run, tmp_path):
    run = make_run()
    checkpoint = run / "checkpoint-3"
    checkpoint.mkdir()
    (tmp_path / "empty").mkdir()
    for arguments, cure in {
        (tmp_path / "none",): "name the `output_dir` of a run",
        (tmp_path / "empty",): "name the `output_dir` of a run",
        (run / "metrics.json",): "There is no folder",
        (checkpoint,): f"name {run}, the run's",
        (run, "--against", run): "is the same run",
        (run, "--against", tmp_path / "empty"): "name the `output_dir` of a run",
        (run, "--out", tmp_path): "is a folder",
        (run, "--out", run / "metrics.json" / "x.html"): "cannot be written",
    }.items():
        result = call(*arguments)
        assert result.exit_code == 2, arguments
        assert cure in result.output
        assert "Traceback" not in result.output


# -- how a run ended ------------------------------------------------------------------------------------------------


def outcome(folder):
    found = page.outcome(read_run(str(folder)))
    return found.state, found.sentence, found.more


def test_finished(make_run):
    assert outcome(make_run()) == ("clean", "Finished.", "20 optimizer steps, 2 epochs, 1 min 23 s.")


def test_resumed_and_finished(make_run):
    first = make_run.journal({**END, "outcome": "stopped"})
    again = make_run.journal({**END, "outcome": "finished"}, resumed_from="out/checkpoint-8")
    state, sentence, more = outcome(make_run(journal=first + again))
    assert (state, sentence) == ("clean", "Finished.")
    assert "1 min 23 s since it was resumed" in more
    assert more.endswith("Resumed at step 8.")


def test_stopped_failed_killed(make_run, tmp_path, monkeypatch):
    log = make_run.log()[:5]  # up to step 8
    summary = {"method": "simpo", "held_out_rows": 100, "before": log[0], "after": None, "train": None}
    cut = {"log": log, "summary": summary}
    state, sentence, more = outcome(make_run("a", journal=make_run.journal({**END, "outcome": "stopped"}), **cut))
    assert (state, sentence) == ("warning", "Stopped at step 8 of 20.")
    assert more == "It left no complete checkpoint to resume from."
    monkeypatch.setattr("trl_plus.runs.checkpoint_files.problem_of", lambda folder: None)
    (tmp_path / "a" / "checkpoint-6").mkdir()
    assert outcome(tmp_path / "a")[2].endswith("/a/recipe.resolved.yaml --resume` continues from checkpoint-6.")
    failed = make_run.journal({"event": "end", "step": 9, "outcome": "failed", "error": "CUDA out of memory."})
    assert outcome(make_run("b", journal=failed, **cut))[:2] == ("error", "Failed at step 9 of 20: CUDA out of memory.")
    killed = outcome(make_run("c", journal=make_run.journal(), **cut))
    assert killed[:2] == ("warning", "Not finished: at step 8 of 20 it is still running, or was killed.")


def test_a_run_that_is_resumed_now_is_not_what_its_first_part_was(make_run):
    journal = make_run.journal({**END, "outcome": "failed", "error": "x"}) + make_run.journal(
        resumed_from="checkpoint-4"
    )
    assert outcome(make_run(journal=journal))[1].startswith("Not finished")


def test_a_run_without_journal(make_run):
    assert outcome(make_run("a", journal=None))[0] == "clean"
    assert outcome(make_run("b", journal=None, summary=None))[1].startswith("Not finished, or made by another version")


def test_the_last_evaluation_stands_in_for_the_one_after(make_run):
    log = [line for line in make_run.log() if line["step"] <= 14]
    summary = {"method": "simpo", "held_out_rows": 100, "before": log[0], "after": None, "train": None}
    found = page.columns(read_run(str(make_run(log=log, summary=summary))))
    assert [column.title for column in found] == ["before", "at step 10"]
    table = dict(page.measures(found))
    assert [cell.text for cell in table["Reward accuracy"]] == ["0.500", "0.700"]
    assert table["Reward accuracy"][0].interval == "0.404 to 0.596"  # Wilson, n = 100


# -- what the files hold --------------------------------------------------------------------------------------------


def test_damaged_files_are_said_and_left_out(make_run):
    log = "".join(json.dumps(line) + "\n" for line in make_run.log()) + '{"step": 21, "lo'
    run = read_run(str(make_run(log=log, summary="{", preflight="[]", journal="\n")))
    assert len(run.log) == len(make_run.log())
    assert [problem.split(" ")[0] for problem in run.problems] == ["1", "metrics.json", "preflight.json"]
    page = run_page(run)
    for problem in run.problems:
        assert problem in page


def test_a_preflight_of_another_version_is_said(make_run, result):
    run = read_run(str(make_run(preflight={**as_json(result()), "schema_version": 99})))
    assert run.preflight is None
    assert "preflight.json is not what" in run.problems[0]


def test_a_preflight_is_read_as_it_was(result, everywhere):
    for made in (result(), everywhere("x")):
        assert from_json(as_json(made)) == made


def test_secrets_are_hidden(make_run):
    page = run_page(read_run(str(make_run())))
    assert "hf_secret" not in page
    assert "token=(hidden)" in page or "&#39;token=(hidden)&#39;" in page


def test_every_sentence_once(make_run):
    note, warning = {"event": "note", "text": "A."}, {"event": "warning", "step": 3, "text": "B."}
    journal = make_run.journal(note, warning, note, notes=["0."]) + make_run.journal(note, warning, resumed_from="x-2")
    run = read_run(str(make_run(journal=journal)))
    assert [line["text"] for line in run.said] == ["0.", "A.", "B."]


def test_commands(make_run):
    folder = make_run()
    found = page.commands(read_run(str(folder)))
    assert found[0] == ("Started in /work", "trl-plus train my.yaml 'token=(hidden)' beta=2.0")
    again = f"trl-plus train {folder.resolve()}/recipe.resolved.yaml output_dir=runs/again --num-processes 2"
    assert found[1] == ("The same run again", again)


def test_rows_per_step(make_run):
    assert page.rows_per_step(read_run(str(make_run()))) == "64 = 4 × 8 × 2"
    assert page.rows_per_step(read_run(str(make_run("b", recipe="method: none\n")))) is None


# -- curves ---------------------------------------------------------------------------------------------------------


def titles(*runs):
    return [plot.title for plot in panels_of([(f"r{index}", read_run(str(run))) for index, run in enumerate(runs)])]


def test_the_curves_of_every_kind_of_run(make_run):
    assert titles(make_run("a")) == [
        "Loss", "Reward accuracy", "Reward margin", "Rewards", "Gradient norm", "Learning rate"
    ]  # fmt: skip
    kto = [{"step": step, "loss": 0.5, "z_ref": 0.1, "one_label_steps": 0.0} for step in (1, 2)]
    assert titles(make_run("b", log=kto)) == ["Loss", "Reference point", "One-label steps"]
    assert titles(make_run("c", log=[])) == []
    orpo = [{"step": 1, "loss": 2.0, "nll_loss": 1.5, "log_odds_ratio": 0.1, "tokens_per_second": 9e3}]
    assert titles(make_run("d", log=orpo)) == ["Loss", "Log odds ratio", "NLL", "Tokens per second"]


def test_lines_of_one_run(make_run):
    plots = {plot.title: plot for plot in panels_of([("r", read_run(str(make_run())))])}
    assert [(drawn.line.name, drawn.line.dots) for drawn in plots["Loss"].lines] == [
        ("train", False),
        ("held out", True),
    ]
    assert [drawn.line.name for drawn in plots["Rewards"].lines] == [
        "chosen train", "chosen held out", "rejected train", "rejected held out"
    ]  # fmt: skip
    assert [drawn.line.name for drawn in plots["Learning rate"].lines] == [""]


def test_lines_of_two_runs(make_run):
    runs = [("a", read_run(str(make_run("a")))), ("b", read_run(str(make_run("b", log=make_run.log(steps=40)))))]
    plots = {plot.title: plot for plot in panels_of(runs)}
    assert "Rewards" not in plots
    drawn = plots["Rewards, chosen"].lines
    assert [(d.line.name, d.line.colour, d.line.dashed) for d in drawn] == [
        ("a train", 0, False), ("a held out", 0, False), ("b train", 1, True), ("b held out", 1, True)
    ]  # fmt: skip
    assert plots["Loss"].x_ticks[-1][1] == "40"


def test_where_a_run_was_resumed(make_run):
    journal = make_run.journal() + make_run.journal(resumed_from="out/checkpoint-10/")
    (plot, *_) = panels_of([("r", read_run(str(make_run(journal=journal))))])
    assert plot.marks == [(200.0, "resumed at step 10")]


# -- the page -------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(make_run):
    page = run_page(read_run(str(make_run("a"))), read_run(str(make_run("b"))))
    assert not re.findall(r"""https?:|(?:src|href|action)\s*=\s*["'](?!data:,")|url\(|@import""", page)


@pytest.mark.parametrize("missing", ["recipe", "log", "journal", "preflight", "summary"])
def test_a_page_without_one_of_the_files(make_run, missing):
    page = run_page(read_run(str(make_run(**{missing: None}))))
    absent = {"recipe": "Keys of the recipe", "log": "<polyline", "preflight": "Preflight looked at"}.get(missing)
    assert absent is None or absent not in page


def test_a_run_without_held_out_rows(make_run):
    log = [{"step": 1, "loss": 0.7}]
    summary = {"method": "kto", "held_out_rows": 0, "before": None, "after": None, "train": {}, "generations": []}
    page = run_page(read_run(str(make_run(log=log, summary=summary))))
    assert "No rows are held out" in page
    assert "Held-out prompts" not in page
