"""Curves in a browser: other axes, smoothing, a log axis, a closer look, and the numbers as CSV."""

import csv
import json
import math
from itertools import pairwise

import pytest

from trl_plus.report.page import run_page
from trl_plus.report.run import read_run
from trl_plus.report.script_data import axes

SET = (
    "((id, value) => {{ const x = document.getElementById(id);"
    " x[x.type === 'checkbox' ? 'checked' : 'value'] = value;"
    " x.dispatchEvent(new Event('input', {{bubbles: true}})); }})('{}', {})"
)
PLOT = "document.querySelector('figure.curve[data-plot=\"{}\"]')"
AXIS = "[...{}.querySelectorAll('.grid + text')].map((x) => x.textContent)"
BELOW = "[...{}.querySelectorAll('text[text-anchor=middle]')].map((x) => x.textContent)"
READINGS = "[...{}.querySelectorAll('.stripe')].map((x) => x.dataset.text ?? x.querySelector('title').textContent)"
NOTES = "[...{}.querySelectorAll('.now')].map((x) => x.textContent)"


def page_of(*folders, **options):
    return run_page(*(read_run(str(folder)) for folder in folders), **options)


def choose(browser, id_, value):
    browser.evaluate(SET.format(id_, json.dumps(value)))


def seen(browser, what, plot=0):
    return browser.evaluate(what.format(PLOT.format(plot)))


def halving(steps=6):
    """A loss that halves at every log; 1000 tokens in 10 s, then 1000 tokens in 20 s, and so on."""
    return [
        {"step": step, "loss": 2.0**-step, "rewards/margins": step - 3.0, "grad_norm": 0.0 if step == 3 else 10.0,
         "num_tokens": 1000.0 * step, "tokens_per_second": 100.0 / step}
        for step in range(1, steps + 1)
    ]  # fmt: skip


def test_nothing_changes_until_a_control_is_used(show, make_run):
    page = page_of(make_run())
    titles = show(page).evaluate(READINGS.format(PLOT.format(0)))
    plain = show(page, scripts=False).evaluate(READINGS.format(PLOT.format(0)))
    assert titles == plain
    assert show(page, scripts=False).evaluate("document.getElementById('curve-controls').offsetParent") is None


def test_a_log_axis(show, make_run):
    browser = show(page_of(make_run(log=halving())))
    choose(browser, "curve-log", True)
    points = browser.evaluate(f"{PLOT.format(0)}.querySelector('polyline').getAttribute('points')")
    heights = [float(point.split(",")[1]) for point in points.split()]
    falls = [b - a for a, b in pairwise(heights)]
    assert max(falls) - min(falls) < 0.05  # halving is a straight line
    assert falls[0] > 0
    assert "0.1" in seen(browser, AXIS)
    assert seen(browser, NOTES, 1) == ["not all values are above 0: the axis is not a log axis."]  # margins
    assert seen(browser, NOTES, 2) == ["values of 0 are not on the log axis."]  # one gradient norm
    choose(browser, "curve-log", False)
    assert seen(browser, NOTES, 1) == []
    assert not browser.problems


def test_over_tokens_and_time(show, make_run):
    folder = make_run(log=halving())
    found = axes(read_run(str(folder)))
    assert found["tokens"] == [1000, 2000, 3000, 4000, 5000, 6000]
    assert found["seconds"] == [10, 30, 60, 100, 150, 210]
    browser = show(page_of(folder))
    choose(browser, "curve-by", "tokens")
    assert seen(browser, BELOW)[0] == "tokens 0"
    assert seen(browser, READINGS)[2] == "step 3, 3000 tokens\n0.125"
    choose(browser, "curve-by", "seconds")
    assert seen(browser, BELOW) == ["minutes 0", "1", "2", "3"]
    assert seen(browser, READINGS)[4] == "step 5, 2.5 minutes\n0.03125"
    x = browser.evaluate(f"{PLOT.format(0)}.querySelector('polyline').getAttribute('points')").split()[3].split(",")[0]
    assert float(x) == pytest.approx(400 * 100 / 210, abs=0.01)


def test_tokens_that_a_resumed_run_counts_anew(make_run):
    log = [{"step": 1, "num_tokens": 100.0}, {"step": 2, "num_tokens": 200.0}, {"step": 4, "num_tokens": 50.0}]
    log += [{"step": 3, "eval_loss": 1.0}]
    found = axes(read_run(str(make_run(log=log))))
    assert found == {"steps": [1, 2, 3, 4], "tokens": [100, 200, 225, 250], "seconds": None}


def test_steps_and_counts_that_are_not_numbers(make_run):
    log = [
        {"step": math.nan, "loss": 1.0},
        {"step": 1, "num_tokens": 10.0, "tokens_per_second": 1.0},
        {"step": 2, "num_tokens": math.nan, "tokens_per_second": 1.0},
        {"step": 3, "num_tokens": 30.0, "tokens_per_second": math.inf},
    ]
    found = axes(read_run(str(make_run(log=log))))
    assert found == {"steps": [1, 2, 3], "tokens": [10, 20, 30], "seconds": [10, 10, 10]}


def test_axes_that_were_not_logged_are_not_offered(show, make_run):
    browser = show(page_of(make_run()))
    assert browser.evaluate("[...document.querySelectorAll('#curve-by option')].map((x) => x.value)") == ["steps"]


def test_smoothing(show, make_run):
    log = [{"step": step, "loss": float(step % 2)} for step in range(1, 9)]
    browser = show(page_of(make_run(log=log)))
    choose(browser, "curve-smooth", 0.5)
    total = weight = 0.0
    for step in range(1, 9):
        total, weight = total / 2 + step % 2 / 2, weight / 2 + 0.5
    assert seen(browser, READINGS)[-1] == f"step 8\n{total / weight:.4g}"
    shown = browser.evaluate(f"{PLOT.format(0)}.querySelectorAll('polyline').length")
    assert shown == 2  # and, faintly, what was logged
    held_out = make_run("b", log=[{"step": step, "eval_loss": float(step % 2)} for step in range(3)])
    browser = show(page_of(held_out))
    before = seen(browser, READINGS)
    choose(browser, "curve-smooth", 0.5)
    assert seen(browser, READINGS) == before


def drag(browser, begin, end):
    """Drag over the first plot between two shares of its axis."""
    box = browser.evaluate(f"{PLOT.format(0)}.querySelector('svg.plot').getBoundingClientRect().toJSON()")
    at = [box["x"] + box["width"] * (50 + 400 * share) / 464 for share in (begin, end)]
    y = box["y"] + box["height"] / 2
    for kind, x in (("mousePressed", at[0]), ("mouseMoved", at[1]), ("mouseReleased", at[1])):
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)


def test_a_closer_look(show, make_run):
    browser = show(page_of(make_run(log=halving(20))))
    browser.evaluate("document.getElementById('curves').scrollIntoView()")
    drag(browser, 0.25, 0.75)  # steps 5 to 15, in every plot
    for plot in (0, 1):
        steps = [int(text.split()[1]) for text in seen(browser, READINGS, plot)]
        assert steps[0] in (5, 6)
        assert steps[-1] in (14, 15)
    drag(browser, 0.5, 0.505)  # a click is no drag
    assert len(seen(browser, READINGS)) in (9, 10, 11)
    browser.evaluate("document.getElementById('curve-whole').click()")
    assert len(seen(browser, READINGS)) == 20
    assert browser.evaluate("document.getElementById('curve-whole').disabled")
    assert not browser.problems


def test_a_closer_look_shows_every_log(show, make_run):
    log = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    browser = show(page_of(make_run(log=log)))
    assert len(seen(browser, READINGS)) == 200
    browser.evaluate("document.getElementById('curves').scrollIntoView()")
    drag(browser, 0.5, 0.6)
    assert seen(browser, READINGS)[10].startswith("step 51")
    assert not seen(browser, NOTES)
    assert 95 <= len(seen(browser, READINGS)) <= 105


def downloaded(browser, folder, plot, name):
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.evaluate(f"{PLOT.format(plot)}.querySelector('button.csv').click()")
    path = folder / name
    for _ in range(200):
        if path.is_file():
            break
        browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_csv_holds_the_numbers_of_the_log(show, make_run, tmp_path):
    log = [
        {"step": 1, "loss": 0.1 + 0.2, "grad_norm": 1e-7},
        {"step": 2, "loss": math.nan},
        {"step": 2, "eval_loss": 1 / 3},
        {"step": 10, "loss": 1e300},
    ]
    browser = show(page_of(make_run(log=log)))
    rows = downloaded(browser, tmp_path, 0, "run-Loss.csv")
    assert [row["step"] for row in rows] == ["1", "2", "10"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([0.1 + 0.2, math.nan, 1e300], rel=0, nan_ok=True)
    assert [row["eval_loss"] for row in rows] == ["", repr(1 / 3), ""]
    assert not browser.problems


def test_the_csv_of_several_runs(show, make_run, tmp_path):
    browser = show(page_of(make_run("=a,b", log=halving(2)), make_run("b", log=halving(3))))
    rows = downloaded(browser, tmp_path, 0, "_a_b-b-Loss.csv")
    assert [(row["run"], row["step"], float(row["loss"])) for row in rows] == [
        ("'=a,b", "1", 0.5), ("'=a,b", "2", 0.25), ("b", "1", 0.5), ("b", "2", 0.25), ("b", "3", 0.125)
    ]  # fmt: skip


def test_a_run_is_hidden(show, make_run):
    browser = show(page_of(make_run("a"), make_run("b", log=make_run.log(steps=40)), make_run("c")))
    count = f"new Set([...{PLOT.format(0)}.querySelectorAll('polyline')].map((x) => x.classList[1])).size"
    assert browser.evaluate(count) == 3
    assert seen(browser, BELOW)[-1] == "40"
    browser.evaluate("document.querySelectorAll('.curve-run')[1].click()")
    assert browser.evaluate(count) == 2
    assert seen(browser, BELOW)[-1] == "20"  # the axis fits the runs that are shown
    assert seen(browser, READINGS)[0] == "step 0\na held out 1.2\nc held out 1.2"


def test_a_page_that_reloads_keeps_what_was_chosen(show, make_run, browser):
    page = page_of(make_run(log=halving()), refresh=1000)
    show(page)
    choose(browser, "curve-by", "tokens")
    choose(browser, "curve-log", True)
    show(page)
    assert browser.evaluate("document.getElementById('curve-by').value") == "tokens"
    assert seen(browser, BELOW)[0] == "tokens 0"
    assert browser.evaluate("document.getElementById('curve-log').checked")


def test_what_has_no_curve_is_folded(show, make_run):
    log = [{**line, "padding_ratio": 0.0} for line in halving()] + [{"step": 6, "train_tokens_per_second": 55.0}]
    browser = show(page_of(make_run(log=log)))
    summary = "[...document.querySelectorAll('#curves summary')].map((x) => x.textContent)"
    assert browser.evaluate(summary) == ["Without a curve: Tokens per second (logged once), Padding (0 throughout)"]
    folded = "[...document.querySelectorAll('#curves details:not([open]) figcaption b')].map((x) => x.textContent)"
    assert browser.evaluate(folded) == ["Tokens per second", "Padding"]


def test_two_evaluations_are_not_joined(show, make_run):
    log = [{"step": 0, "eval_loss": 2.0}, *halving(), {"step": 6, "eval_loss": 1.0}]
    browser = show(page_of(make_run(log=log)))
    drawn = "[...{}.querySelectorAll('polyline')].map((x) => x.classList[1])"
    dots = "{}.querySelectorAll('svg.plot .dot').length"
    for value in (False, True):
        choose(browser, "curve-log", value)
        assert seen(browser, drawn) == ["c0"]  # training only
        assert seen(browser, dots) == 2
