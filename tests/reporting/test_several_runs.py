"""Reports of several runs, the index of a folder of runs, and pages of runs that train."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.report import page, write
from trl_plus.report.differences import cautions, held_out_groups
from trl_plus.report.index import index_page
from trl_plus.report.page import run_page
from trl_plus.report.run import read_run
from trl_plus.runs.folder import running


def call(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def read(*folders):
    return [read_run(str(folder)) for folder in folders]


def summary(**changes):
    log = [{"step": 0, "eval_loss": 2.0}, {"step": 20, "eval_loss": 0.5, "eval_rewards/accuracies": 0.9}]
    known = {"method": "simpo", "dataset": "org/data", "held_out_rows": 100, "before": log[0], "after": log[1]}
    return {**known, "train": {}, "generations": [], **changes}


def recipe(**changes):
    values = {"method": "simpo", "model_name_or_path": "org/model", "dataset_name": "org/data", **changes}
    return "# Resolved from my.yaml. Origin of each value: recipe.\n" + "".join(
        f"{key}: {value}  # recipe\n" for key, value in values.items()
    )


# -- several runs -------------------------------------------------------------------------------------------------


def test_four_runs_on_one_page(show, make_run):
    folders = [make_run(name, recipe=recipe(beta=beta)) for name, beta in zip("abcd", (2.0, 2, 2.5, 2.5), strict=True)]
    browser = show(run_page(*read(*folders)))
    assert browser.evaluate("document.querySelector('h1').textContent") == "4 runs"
    assert browser.evaluate("document.title") == "Report: a and b and c and 1 more"
    finals = "[...document.querySelectorAll('.held-out.runs tbody tr')].map((x) => x.innerText.split(/\\s*\\t\\s*/))"
    rows = browser.evaluate(finals)
    assert [row[0].strip() for row in rows] == list("abcd")
    assert all("0.900" in row[3] and "0.826 to 0.945" in row[3] for row in rows)
    looks = f"new Set([...document.querySelectorAll('figure.curve')[0].querySelectorAll('polyline')].map({LOOK})).size"
    assert browser.evaluate(looks) == 4
    differs = "[...document.querySelectorAll('.recipe .differs')].map((x) => [...x.cells].map((c) => c.textContent))"
    assert browser.evaluate(differs) == [["beta", "2.0", "2", "2.5", "2.5"]]
    assert "depend on beta, which differs: only accuracies" in browser.evaluate(
        "document.querySelector('.caution').innerText"
    )
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    width = browser.evaluate("document.documentElement.scrollWidth")
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert width <= 360
    assert not browser.problems


LOOK = "(x) => getComputedStyle(x).stroke + getComputedStyle(x).strokeDasharray"


def test_sixteen_runs_look_different(make_run):
    from trl_plus.report.curves import COLOURS, dashed

    assert len({(index % COLOURS, dashed(index)) for index in range(16)}) == 16


def test_different_data_is_named(make_run):
    runs = read(
        make_run("a", summary=summary(held_out_digest="1" * 64), recipe=recipe()),
        make_run("b", summary=summary(held_out_digest="2" * 64), recipe=recipe(dataset_name="org/other")),
        make_run("c", summary=summary(held_out_digest="1" * 64, dataset="copy"), recipe=recipe()),
    )
    assert held_out_groups(runs) == ["A", "B", "A"]
    found = cautions(["a", "b", "c"], runs)
    assert found == [
        "The runs have different held-out rows: their figures cannot be compared.",
        "The runs were trained on different data: `dataset_name` is org/data in a, c, org/other in b.",
    ]
    text = run_page(*runs)
    for sentence in ("different held-out rows", "org/other in b", "do not compare the lines with dots"):
        assert sentence in text
    assert cautions(["a", "c"], [runs[0], runs[2]]) == []  # the same rows under another name
    assert "do not compare" not in run_page(runs[0], runs[2])


def test_the_same_name_with_other_rows(make_run, result):
    from trl_plus.preflight.as_json import as_json

    other = result()
    other.splits[0].rows = 150
    runs = read(make_run("a"), make_run("b", preflight=as_json(other)))
    assert cautions(["a", "b"], runs) == [
        "The two runs were trained on different data: the training split had 150 or 200 rows."
    ]


@pytest.mark.parametrize(
    "first, second, sentence",
    [
        ({"beta": 2.0}, {}, None),  # the default of SimPO
        ({"beta": 2.5}, {}, "Rewards, margins and losses depend on `beta`, which differs"),
        ({"sft_weight": 0.1}, {}, "Losses depend on `sft_weight`, which differs: compare accuracies and margins."),
        ({"learning_rate": 1e-6}, {"learning_rate": 2e-6}, None),
        ({"method": "dpo"}, {"method": "kto"}, "different methods have different units"),
    ],
)
def test_units(make_run, first, second, sentence):
    runs = [
        read_run(str(make_run(name, recipe=recipe(**values), summary=summary(method=values.get("method", "simpo")))))
        for name, values in (("a", first), ("b", second))
    ]
    found = cautions(["a", "b"], runs)
    assert found == [] if sentence is None else len(found) == 1 and sentence in found[0]


def test_where_the_page_of_several_runs_goes(make_run, tmp_path):
    a, b, c = (make_run(name) for name in "abc")
    assert call(a, b, c).output == f"Wrote {tmp_path}/report.html.\n"
    assert "<title>Report: a and b and c</title>" in (tmp_path / "report.html").read_text()
    assert call(a, "--against", b).output == f"Wrote {a}/report.html.\n"
    (tmp_path / "report.html").write_text("mine")
    result = call(a, b)
    assert result.exit_code == 2
    assert "is not a page of `trl-plus report`. Fix: name a file with --out." in result.output
    assert (tmp_path / "report.html").read_text() == "mine"
    assert call(a, b, "--out", tmp_path / "report.html").exit_code == 0
    result = call(a, b, a)
    assert result.exit_code == 2
    assert "is the same run" in result.output


# -- a folder of runs ---------------------------------------------------------------------------------------------


def move(folder, *parts):
    target = folder.parent.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(target)


def test_an_index(show, make_run, tmp_path, browser):
    first = move(make_run("x", summary=summary()), "runs", "first")
    move(make_run("y", journal=make_run.journal(time="2027-01-01T00:00:00+00:00")), "runs", "sweep", "a b&c")
    move(make_run("z", summary=summary(held_out_digest="1" * 64)), "runs", "sweep", "javascript:alert(1)")
    (first / "checkpoint-1").mkdir()
    (first / "checkpoint-1" / "metrics.jsonl").write_text("")
    runs = tmp_path / "runs"
    assert call(runs).output == f"Wrote {runs}/index.html.\n"
    browser.open(runs / "index.html")
    rows = browser.evaluate("[...document.querySelectorAll('tbody tr')].map((x) => x.innerText)")
    assert browser.evaluate("document.querySelector('h1').textContent") == "3 runs in runs"
    assert "Finished." in rows[1]
    assert "0.900" in rows[1]
    for link, folder in zip(
        browser.evaluate("[...document.querySelectorAll('tbody a')].map((x) => x.href)"),
        ("sweep/a b&c", "first", "sweep/javascript:alert(1)"),
        strict=True,
    ):
        assert link.startswith("file:///")
        browser.call("Page.navigate", url=link)
        browser.evaluate("new Promise((done) => setTimeout(done, 100))")
        assert (runs / folder / "report.html").is_file()
    assert "have the same held-out rows; figures of others cannot" in (runs / "index.html").read_text()
    assert not browser.problems


def test_reports_of_an_index_are_made_when_they_are_old(make_run, tmp_path):
    run = move(make_run("x"), "runs", "x")
    call(tmp_path / "runs")
    report = run / "report.html"
    report.write_text("newer than the run")
    call(tmp_path / "runs")
    assert report.read_text() == "newer than the run"
    os.utime(report, (1, 1))
    call(tmp_path / "runs")
    assert "<title>Report: x" in report.read_text()


def test_an_index_overwrites_no_page_of_somebody_else(make_run, tmp_path):
    move(make_run("x"), "runs", "x")
    (tmp_path / "runs" / "index.html").write_text("mine")
    result = call(tmp_path / "runs")
    assert result.exit_code == 2
    assert "name a file with --out" in result.output
    assert call(tmp_path / "runs", "--out", tmp_path / "other" / "i.html").exit_code == 0
    assert 'href="./../runs/x/report.html"' in (tmp_path / "other" / "i.html").read_text()


def test_runs_and_a_folder_of_runs_are_not_mixed(make_run, tmp_path):
    move(make_run("x"), "runs", "x")
    result = call(tmp_path / "runs", make_run("y"))
    assert result.exit_code == 2
    assert f"Fix: name its runs, as in `{tmp_path}/runs/*/`" in result.output


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", '" onclick="alert(1)', "\x1b[2J\u202e"])
def test_text_of_an_index_is_shown_and_not_run(show, make_run, tmp_path, text):
    run = make_run("<b>x", recipe=recipe(dataset_name=text), summary=summary(model=text, dataset=text))
    browser = show(index_page(tmp_path, read(run), tmp_path))
    assert "<b>x" in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.querySelectorAll('body img, body b').length") == 0
    names = "[...document.querySelectorAll('body *')].flatMap((x) => [...x.attributes].map((a) => a.name))"
    assert not [name for name in browser.evaluate(names) if name.startswith("on")]
    assert not browser.dialogs
    assert not browser.problems


# -- a run that trains --------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from trl_plus.runs.folder import claimed
with claimed(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def training(make_run):
    """A run at step 8 of 20 whose folder another process holds; `end` kills that process."""
    log = [line for line in make_run.log() if line["step"] <= 8]
    folder = make_run("live", log=log, journal=make_run.journal(), summary=summary(after=None, train=None))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"

    class Training:
        path = folder

        def end(self):
            process.kill()
            process.wait()

    yield Training()
    process.kill()
    process.communicate()


def test_a_run_that_trains(training, tmp_path):
    assert running(training.path) is True
    found = page.outcome(read_run(str(training.path)))
    assert (found.state, found.sentence) == ("info", "Running: at step 8 of 20.")
    assert running(tmp_path) is None
    training.end()
    assert running(training.path) is False
    assert page.outcome(read_run(str(training.path))).sentence.startswith("Not finished")


@pytest.mark.parametrize("whole", [False, True], ids=["run", "folder"])
def test_watch(training, make_run, monkeypatch, whole):
    """The page loads itself again while the run trains, and no more when it ended."""
    argument = training.path.parent if whole else training.path
    path = argument / ("index.html" if whole else "report.html")
    pages = []

    def sleep(seconds):
        pages.append(path.read_text())
        if len(pages) == 1:
            lines = make_run.journal({"event": "end", "outcome": "finished", "error": None, "step": 20})
            (training.path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            training.end()

    monkeypatch.setattr(write.time, "sleep", sleep)
    result = call(argument, "--watch")
    assert result.exit_code == 0
    assert "Ctrl-C ends that, not the run" in result.output
    (first,) = pages
    assert '<meta http-equiv="refresh" content="10">' in first
    assert "Running" in first
    last = path.read_text()
    assert 'http-equiv="refresh"' not in last
    assert "Finished." in last


def test_watch_stops_by_a_key(training, monkeypatch):
    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(write.time, "sleep", sleep)
    assert call(training.path, "--watch").exit_code == 130
    assert 'http-equiv="refresh"' not in (training.path / "report.html").read_text()


def test_watch_of_a_run_that_ended(make_run):
    run = make_run()
    assert call(run, "--watch").output == f"Wrote {run}/report.html.\n"


def test_one_of_each_is_singular(make_run):
    run = make_run(summary=summary(held_out_rows=1))
    assert dict(page.facts(read_run(str(run))))["Held out"] == "1 row"
