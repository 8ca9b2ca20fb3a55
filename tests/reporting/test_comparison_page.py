"""The page of a comparison in a browser: answers, filters, order, and text that stays text."""

import importlib.util
from pathlib import Path

import pytest

from trl_plus.comparison.answers import Answer, Sampling
from trl_plus.comparison.output import comparison_page
from trl_plus.comparison.run import Comparison, Pair

ROOT = Path(__file__).parents[2]
SHOWN = "[...document.querySelectorAll('article.sample')].filter((x) => x.offsetParent).map((x) => x.dataset.number)"


def answer(text, hit=False):
    return Answer(text, tuple(range(len(text.split()))), hit)


def make(*pairs, **changes):
    values = {"base": "org/base", "tuned": "runs/a", "source": "p.txt", "sampling": Sampling(64), "notes": ["A note."]}
    return Comparison(**{**values, "pairs": list(pairs), **changes})


@pytest.fixture
def page():
    return comparison_page(
        make(
            Pair("first", answer("a b c d"), answer("a b c d")),
            Pair("second", answer("a b"), answer("x " * 30, hit=True)),
            Pair([{"role": "user", "content": "third"}], answer("a b c d e"), answer("a b c")),
        )
    )


def choose(browser, id_, value):
    browser.evaluate(
        f"(() => {{ const x = document.getElementById('{id_}'); x.value = '{value}';"
        " x.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_what_is_shown(show, page):
    browser = show(page)
    text = browser.evaluate("document.body.innerText")
    for words in ("runs/a", "org/base", "3 from p.txt", "greedy, at most 64 tokens", "1 of 3", "A note.", "user: third",
                  "30 tokens", "hit the limit", "1 of 3, 33% [6%, 79%]"):  # fmt: skip
        assert words in text, words
    assert browser.evaluate("[...document.querySelectorAll('.badge')].map((x) => x.textContent)") == [
        "alike",
        "hit the limit",
    ]
    assert not browser.problems
    assert browser.requests == [browser.evaluate("location.href")]


def test_filters_and_order(show, page):
    browser = show(page)
    assert browser.evaluate(SHOWN) == ["1", "2", "3"]
    choose(browser, "order", "change")
    assert browser.evaluate(SHOWN) == ["2", "3", "1"]
    choose(browser, "order", "longer")
    assert browser.evaluate(SHOWN) == ["2", "1", "3"]
    choose(browser, "order", "shorter")
    assert browser.evaluate(SHOWN) == ["3", "1", "2"]
    browser.evaluate("document.getElementById('differ').click()")
    assert browser.evaluate(SHOWN) == ["3", "2"]
    browser.evaluate("document.getElementById('hit').click()")
    assert browser.evaluate(SHOWN) == ["2"]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 3 shown"
    choose(browser, "words", "third")
    assert browser.evaluate(SHOWN) == []
    assert browser.evaluate("!!document.getElementById('nothing').offsetParent")
    browser.evaluate("document.getElementById('all').click()")
    assert browser.evaluate(SHOWN) == ["1", "2", "3"]
    choose(browser, "words", "USER third")
    assert browser.evaluate(SHOWN) == ["3"]


def test_the_figures_are_in_sight_on_a_phone(show, page):
    browser = show(page)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    cells = "[...document.querySelectorAll('.figures td')].map((x) => x.getBoundingClientRect().right)"
    rights = browser.evaluate(cells)
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert max(rights) <= 360


def test_without_scripts_all_answers_are_there(show, page):
    browser = show(page, scripts=False)
    assert browser.evaluate(SHOWN) == ["1", "2", "3"]
    assert browser.evaluate("document.getElementById('choose').offsetParent") is None


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", '"><svg onload=alert(1)>', "nul \0 \u202e \ud800"]
)
def test_text_is_shown_and_not_run(show, text):
    hostile = make(
        Pair(text, answer(text), answer(text + " x", True)), base=text, tuned=text, source=text, notes=[text]
    )
    browser = show(comparison_page(hostile))
    assert text.split("\0")[0] in browser.evaluate("document.body.innerText")
    assert not {"\0", "\u202e"} & set(browser.evaluate("document.body.textContent"))
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.querySelectorAll('body svg').length") == 0
    assert not browser.dialogs
    assert not browser.problems


def test_the_pictures(browser, make_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("run_pictures", ROOT / "scripts" / "run_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pairs = make(Pair("first", answer("a b c d"), answer("a b c d")))
    script.pictures(script.read_run(str(make_run())), pairs, tmp_path / "images")
    for name in ("report.png", "compare.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")
