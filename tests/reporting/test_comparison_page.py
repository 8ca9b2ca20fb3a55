"""The page of a comparison in a browser: answers, filters, order, and text that stays text."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_plus.comparison.answers import Answer, Sampling
from trl_plus.comparison.marks import change, marks
from trl_plus.comparison.output import comparison_page
from trl_plus.comparison.run import Comparison, Pair

ROOT = Path(__file__).parents[2]
LIST = "[...document.querySelectorAll('#pairs article.sample')]"
FOLD = "[...document.querySelectorAll('details#alike:not([open]) article.sample')]"
SHOWN = f"{LIST}.filter((x) => x.offsetParent).map((x) => x.dataset.number)"
FOLDED = f"{FOLD}.filter((x) => !x.hidden).map((x) => x.dataset.number)"


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
        "hit the limit",
        "alike",
    ]
    assert not browser.problems
    assert browser.requests == [browser.evaluate("location.href")]


def test_filters_and_order(show, page):
    """What changed most is first; the prompt that is answered alike is folded, in every order."""
    browser = show(page)
    assert browser.evaluate(SHOWN) == ["2", "3"]
    choose(browser, "order", "longer")
    assert browser.evaluate(SHOWN) == ["2", "3"]
    choose(browser, "order", "shorter")
    assert browser.evaluate(SHOWN) == ["3", "2"]
    choose(browser, "order", "number")
    assert browser.evaluate(SHOWN) == ["2", "3"]
    assert browser.evaluate(FOLDED) == ["1"]
    choose(browser, "order", "shorter")
    browser.evaluate("document.getElementById('differ').click()")
    assert browser.evaluate(SHOWN) == ["3", "2"]
    assert browser.evaluate(FOLDED) == []
    browser.evaluate("document.getElementById('hit').click()")
    assert browser.evaluate(SHOWN) == ["2"]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 3 shown"
    choose(browser, "words", "third")
    assert browser.evaluate(SHOWN) == []
    assert browser.evaluate("!!document.getElementById('nothing').offsetParent")
    browser.evaluate("document.getElementById('all').click()")
    assert browser.evaluate(SHOWN) == ["2", "3"]
    assert browser.evaluate(FOLDED) == ["1"]
    choose(browser, "words", "USER third")
    assert browser.evaluate(SHOWN) == ["3"]
    choose(browser, "words", "first")  # found among those answered alike
    assert browser.evaluate(SHOWN) == []
    assert browser.evaluate("document.querySelector('#alike summary').textContent") == "1 prompt answered alike"
    assert browser.evaluate("document.getElementById('nothing').offsetParent") is None


def test_the_words_that_differ_are_marked(show):
    browser = show(
        comparison_page(
            make(
                Pair("one", answer("I like green tea."), answer("I like black tea.")),
                Pair("two", answer("same\n words"), answer("same words")),
                Pair("three", answer(""), answer("new <b>words</b>")),
                Pair("four", answer("我喜欢绿茶。"), answer("我喜欢红茶。")),
            )
        )
    )
    marked = "[...document.querySelectorAll('article.sample')].map((x) => [x.dataset.number,"
    marked += " ...[...x.querySelectorAll('mark')].map((m) => m.textContent.trim())])"
    assert browser.evaluate(marked) == [
        ["3", "new <b>words</b>"],
        ["1", "green", "black"],
        ["4", "绿", "红"],
        ["2"],
    ]
    texts = browser.evaluate("[...document.querySelectorAll('.text')].map((x) => x.textContent)")
    assert texts == [
        "empty", "new <b>words</b>", "I like green tea.", "I like black tea.", "我喜欢绿茶。", "我喜欢红茶。",
        "same\n words", "same words",
    ]  # fmt: skip
    assert "alike but for white space" in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.getElementById('alike')") is None  # no two answers are the same text


def test_long_answers_are_marked_at_their_ends():
    """Texts whose words cannot all be compared with each other keep what they begin and end with."""
    base, tuned = "same " * 3000 + "a end", "same " * 3000 + "b c end"
    assert marks(base, tuned) == (
        [("same " * 3000, False), ("a ", True), ("end", False)],
        [("same " * 3000, False), ("b c ", True), ("end", False)],
    )


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab \n茶\u00a0.")), st.text(st.sampled_from("ab \n茶\u00a0.")))
def test_marks_change_no_text(base, tuned):
    for text, pieces in zip((base, tuned), marks(base, tuned), strict=True):
        assert "".join(piece for piece, _ in pieces) == text
    unmarked = ["".join(piece for piece, own in pieces if not own).split() for pieces in marks(base, tuned)]
    assert "".join(unmarked[0]) == "".join(unmarked[1])
    assert (change(base, tuned) == 0) == (not any(own for pieces in marks(base, tuned) for _, own in pieces))


def test_the_figures_are_in_sight_on_a_phone(show, page):
    browser = show(page)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    cells = "[...document.querySelectorAll('.figures td')].map((x) => x.getBoundingClientRect().right)"
    rights = browser.evaluate(cells)
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert max(rights) <= 360


def test_without_scripts_all_answers_are_there(show, page):
    browser = show(page, scripts=False)
    assert browser.evaluate(SHOWN) == ["2", "3"]
    browser.evaluate("document.getElementById('alike').open = true")
    assert browser.evaluate(SHOWN.replace("#pairs", "#alike")) == ["1"]
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
