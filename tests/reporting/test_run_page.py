"""The page of a run in a browser: what it shows, and that neither data nor models can run a script in it."""

import json

import pytest

from trl_plus.report.page import run_page
from trl_plus.report.run import read_run

HOSTILE = [
    "</script><script>document.title='owned';alert(1)</script>",
    '"><svg onload=alert(1)><a href="javascript:alert(1)">x</a>',
    "</title></style></textarea><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "{{ 7 * 191 }}{% raw %}${alert(1)}<b>",
    "nul \0 flip\u202e esc\x1b]0;owned\x07",
]


def page_of(*folders):
    return run_page(*(read_run(str(folder)) for folder in folders))


def test_the_page_shows_all_and_asks_for_nothing(show, make_run):
    browser = show(page_of(make_run()))
    text = browser.evaluate("document.body.innerText")
    for words in (
        "Finished.", "20 optimizer steps", "64 = 4 × 8 × 2", "100 rows", "0.900", "0.826 to 0.945", "not learning",
        "step 12", "Gradient norm", "user: Hello", "Hello, you.", "Not ready", "Identical sides", "learning_rate",
        "command line", "trl-plus train", "x86, 8 cores", "2.9", "Reference: none.",
    ):  # fmt: skip
        assert words in text, words
    assert browser.requests == [browser.evaluate("location.href")]
    assert not browser.problems


def test_curves_are_where_their_axes_say(show, make_run):
    browser = show(page_of(make_run()))
    loss, text, grid = browser.evaluate(
        "(() => { const plot = document.querySelector('figure.curve');"
        " const box = (x) => x.getBoundingClientRect().toJSON();"
        " return [box(plot.querySelector('polyline')), plot.querySelector('.stripe:last-of-type title').textContent,"
        " [...plot.querySelectorAll('.grid')].map(box)]; })()"
    )
    # the loss falls from 1.1 to 0.2 on an axis from 0.0 to 1.5
    span = grid[0]["y"] - grid[-1]["y"]
    assert (grid[0]["y"] - loss["y"]) / span == pytest.approx(1.1 / 1.5, abs=0.03)
    assert loss["height"] / span == pytest.approx(0.9 / 1.5, abs=0.03)
    assert text == "step 20\ntrain 0.2\nheld out 0.2"


def test_two_runs(show, make_run):
    other = (make_run("a") / "recipe.resolved.yaml").read_text().replace("beta: 2.0", "beta: 2.5")
    browser = show(page_of(make_run("first"), make_run("second", recipe=other)))
    assert browser.evaluate("document.querySelector('h1').textContent") == "first against second"
    heads = browser.evaluate(
        "[...document.querySelectorAll('.held-out thead th')].map((x) => x.firstChild.textContent)"
    )
    assert heads == ["metric", "first before", "first after", "second before", "second after"]
    differs = "[...document.querySelectorAll('.recipe .differs')].map((x) => [...x.cells].map((c) => c.textContent))"
    assert browser.evaluate(differs) == [["beta", "2.0", "2.5"]]
    titles = browser.evaluate("[...document.querySelectorAll('.sample h4')].map((x) => x.textContent)")
    assert titles == ["before", "first after", "second after"]  # both begin with the same model
    dashes = "[...document.querySelectorAll('figure.curve')[0].querySelectorAll('polyline')]"
    styles = browser.evaluate(f"{dashes}.map((x) => getComputedStyle(x).strokeDasharray)")
    assert [style == "none" for style in styles] == [True, True, False, False]
    colours = browser.evaluate(f"{dashes}.map((x) => getComputedStyle(x).stroke)")
    assert colours[0] == colours[1] != colours[2] == colours[3]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_text_is_shown_and_not_run(show, make_run, everywhere, text):
    from trl_plus.preflight.as_json import as_json

    folder = make_run("run")
    summary = json.loads((folder / "metrics.json").read_text())
    summary |= {"generations": [{"prompt": text, "before": text, "after": text}], "dataset": text, "model": text}
    said = [{"event": kind, "text": text} for kind in ("note", "warning")]
    line = text.replace("\0", "").replace("\n", " ")
    hostile = make_run(
        "hostile",
        recipe=f"# Resolved from {line}. Origin of each value\nmethod: simpo\ndataset_name: {line}  # recipe\n",
        summary=summary,
        journal=make_run.journal(*said, {"event": "end", "outcome": "failed", "error": text}, devices={text: text}),
        preflight=as_json(everywhere(text)),
    )
    for page in (page_of(hostile), page_of(hostile, folder)):
        browser = show(page)
        browser.evaluate("document.querySelectorAll('details').forEach((x) => (x.open = true))")
        shown = browser.evaluate("document.body.textContent")
        assert text.split("\0")[0] in shown
        assert not {"\0", "\u202e", "\x1b"} & set(shown)
        assert browser.evaluate("document.title").startswith("Report: hostile")
        assert browser.evaluate("document.scripts.length") == 1
        assert browser.evaluate("document.querySelectorAll('img, iframe, a, style ~ style, body link').length") == 0
        names = "[...document.querySelectorAll('*')].flatMap((x) => [...x.attributes].map((a) => a.name))"
        assert not [name for name in browser.evaluate(names) if name.startswith("on") or name == "style"]
        assert not browser.dialogs
        assert not browser.problems


def test_on_a_phone_in_the_dark_and_on_paper(show, make_run):
    browser = show(page_of(make_run("a"), make_run("b")))
    looks = {}
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        looks[scheme] = browser.evaluate("getComputedStyle(document.querySelector('polyline')).stroke")
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert looks["light"] != looks["dark"]
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    width = browser.evaluate("document.documentElement.scrollWidth")
    heads = "[...document.querySelectorAll('.held-out tbody th')].map((x) => x.getBoundingClientRect().height)"
    heights = browser.evaluate(heads)
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert width <= 360
    assert max(heights) < 100  # names of metrics are broken between words, not between letters
    assert browser.call("Page.printToPDF")["data"]


def test_without_scripts_all_is_there(show, make_run):
    browser = show(page_of(make_run()), scripts=False)
    assert browser.evaluate("document.querySelectorAll('polyline').length") > 6
