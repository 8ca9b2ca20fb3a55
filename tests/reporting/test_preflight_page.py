"""The page of a preflight in a browser: what it shows, how its filters work, and that a dataset cannot run a script."""

import pytest

from trl_plus.preflight.findings import Example, Severity
from trl_plus.preflight.page import preflight_page
from trl_plus.preflight.preview_shown import preview_page

SHOWN = "[...document.querySelectorAll('article.finding')].filter((x) => x.offsetParent).map((x) => x.dataset.code)"
HOSTILE = [
    "</script><script>document.title='owned';alert(1)</script>",
    "<img src=x onerror=\"document.title='owned';alert(1)\">",
    '"><svg onload=alert(1)><a href="javascript:alert(1)">x</a>',
    "' autofocus onfocus='alert(1)' x='",
    "javascript:alert(1)",
    "</title></style></textarea><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<style>*{display:none}</style><link rel=stylesheet href=http://127.0.0.1:9/x>",
    "<meta http-equiv=refresh content=0;url=x><base href=http://127.0.0.1:9/>",
    "{{ 7 * 191 }}{% raw %}${alert(1)}`<b>`",
    "<!--<script>",
]
ODD = [
    "\ud800 lone \udfff",
    "nul \0 nul",
    "\u202eflip\u2066",
    "\x1b]0;owned\x07",
    "😀👩‍👩‍👧‍👦 e\u0301 مرحبا",
]


# -- what is shown --------------------------------------------------------------------------------------------------


def test_the_page_shows_all_and_asks_for_nothing(show, result):
    browser = show(preflight_page(result()))
    text = browser.evaluate("document.body.innerText")
    for words in (
        "recipes/my.yaml", "Not ready", "1 error, 2 warnings, 1 info in 200 train and 20 eval rows", "org/model",
        "conversational pairs", "128 tokens", "200 rows, all checked", "20 rows checked of a stream",
        "80 rows begin with a system message.", "Yes, of course.", "and 2 more rows", "Remove these rows.",
        "4 of 200 rows (2.0%)", "the split as a whole", "drops 3 of 200 rows and cuts 7 chosen and 5 rejected",
        "15 true (75.0%), 5 false (25.0%)", "longer in 50.0% and shorter in 25.0% of 4 pairs",
    ):  # fmt: skip
        assert words in text, words
    assert browser.requests == [browser.evaluate("location.href")]
    assert not browser.problems
    assert browser.evaluate(SHOWN) == ["D105", "D501", "D601", "D701"]  # the gravest first


def test_without_scripts_all_findings_are_there_and_no_dead_filter(show, result):
    browser = show(preflight_page(result()), scripts=False)
    assert browser.evaluate(SHOWN) == ["D105", "D501", "D601", "D701"]
    assert browser.evaluate("document.getElementById('filters').offsetParent") is None


def test_histograms(show, result):
    browser = show(preflight_page(result()))
    bars = browser.evaluate("[...document.querySelectorAll('svg.plot')].map((x) => x.querySelectorAll('rect').length)")
    assert bars == [3, 3, 3, 3]  # empty bins are no bars
    left, middle, third, line = browser.evaluate(
        "[...document.querySelector('svg.plot').querySelectorAll('rect, line.limit')]"
        ".map((x) => x.getBoundingClientRect().toJSON())"
    )
    assert left["height"] == pytest.approx(2 * middle["height"], rel=0.01)
    assert left["height"] == pytest.approx(6 * third["height"], rel=0.01)
    # 128 lies in the third bin, of 50 tokens that begin at 100
    assert line["x"] == pytest.approx(third["x"] + 28 / 50 * (third["x"] - middle["x"]), abs=2)
    assert "100 to 150 tokens: 20 rows" in browser.evaluate("document.querySelectorAll('svg.plot rect')[2].textContent")


def test_a_result_with_nothing_in_it(show, result):
    browser = show(preflight_page(result(findings=[], splits=[], previews=[], notes=[], model=None, max_length=None)))
    text = browser.evaluate("document.body.innerText")
    assert "No errors and no warnings." in text
    assert "Nothing was found." in text
    assert not browser.problems


def test_dark_light_and_print(show, result):
    browser = show(preflight_page(result()))
    looks = {}
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        looks[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    filters = browser.evaluate("document.getElementById('filters').offsetParent")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert looks["light"] != looks["dark"]
    assert filters is None


def test_printing_unfolds_every_row(show, result, preview):
    browser = show(preflight_page(result(previews=[preview(row) for row in range(3)])))
    closed = "document.querySelectorAll('details:not([open])').length"
    assert browser.evaluate(closed) == 2
    browser.call("Page.printToPDF")
    assert browser.evaluate(closed) == 0


def test_no_sideways_scrolling_on_a_phone(show, result):
    browser = show(preflight_page(result(source="x" * 500)))
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    width = browser.evaluate("document.documentElement.scrollWidth")
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert width <= 360


# -- filters --------------------------------------------------------------------------------------------------------


def choose(browser, id_, value):
    browser.evaluate(
        f"(() => {{ const x = document.getElementById('{id_}'); x.value = '{value}';"
        " x.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_filters(show, result):
    browser = show(preflight_page(result()))
    browser.evaluate("document.querySelector('input[value=warning]').click()")
    assert browser.evaluate(SHOWN) == ["D105", "D701"]
    assert browser.evaluate("document.getElementById('shown').textContent") == "2 of 4 shown"
    choose(browser, "code", "D701")
    assert browser.evaluate(SHOWN) == ["D701"]
    choose(browser, "code", "D501")  # a warning, and those are off
    assert browser.evaluate(SHOWN) == []
    assert browser.evaluate("!!document.getElementById('none').offsetParent")
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate(SHOWN) == ["D105", "D501", "D601", "D701"]
    choose(browser, "split", "eval")
    assert browser.evaluate(SHOWN) == ["D601"]
    choose(browser, "split", "")
    choose(browser, "text", "PERSONAL b.org")
    assert browser.evaluate(SHOWN) == ["D701"]


def test_filters_by_keyboard(show, result):
    browser = show(preflight_page(result()))
    browser.press("Tab")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.value") == "warning"
    browser.press(" ", " ")
    assert browser.evaluate(SHOWN) == ["D105", "D701"]
    for _ in range(4):
        browser.press("Tab")
    assert browser.evaluate("document.activeElement.id") == "text"
    browser.press("a", "a")
    browser.press("@", "@")
    assert browser.evaluate(SHOWN) == ["D701"]


# -- hostile and odd text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_and_not_run(show, text, everywhere):
    hostile = everywhere(text)
    for page in (preflight_page(hostile), preview_page(hostile.previews, text)):
        browser = show(page)
        browser.evaluate("document.querySelectorAll('details').forEach((x) => (x.open = true))")
        assert text.replace("`<b>`", "<b>") in browser.evaluate("document.body.innerText").replace("`<b>`", "<b>")
        assert browser.evaluate("document.title").endswith(text)
        assert browser.evaluate("document.scripts.length") == 1
        assert browser.evaluate("document.querySelectorAll('img, iframe, a, style ~ style, body link').length") == 0
        names = "[...document.querySelectorAll('*')].flatMap((x) => [...x.attributes].map((a) => a.name))"
        assert not [name for name in browser.evaluate(names) if name.startswith("on") or name == "style"]
        assert not browser.dialogs
        assert not browser.problems
        assert browser.requests == [browser.evaluate("location.href")]


def test_the_policy_stops_what_would_not_be_escaped(show, result):
    """The second wall: markup that got into the page as it is."""
    page = preflight_page(result()).replace(
        "</main>",
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
        "<style>.verdict { display: none }</style><iframe src='javascript:parent.document.title=1'></iframe></main>",
    )
    browser = show(page)
    assert browser.evaluate("document.title") == "Preflight: recipes/my.yaml"
    assert browser.evaluate("!!document.querySelector('.verdict').offsetParent")
    assert len(browser.problems) >= 3
    assert browser.evaluate(SHOWN) == ["D105", "D501", "D601", "D701"]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:12]))
def test_odd_text_is_shown(show, text, everywhere):
    browser = show(preflight_page(everywhere(text)))
    shown = browser.evaluate("document.body.textContent")
    assert "\ufffd" not in shown
    assert not {"\0", "\u202e", "\u2066", "\x1b"} & set(shown)
    for character, written in {"\ud800": "\\ud800", "\0": "\\x00", "\u202e": "\\u202e", "😀": "😀"}.items():
        assert (written in shown) == (character in text)
    assert not browser.problems


def test_a_line_of_a_megabyte(show, result, finding, preview):
    long = "y" * 1_000_000
    found = finding(sentence=long, cure=long, examples=(Example(1, long),))
    browser = show(preflight_page(result(source=long, notes=[long], findings=[found], previews=[preview(text=long)])))
    shown = browser.evaluate("document.body.textContent")
    assert "+998,000 characters" in shown
    assert "+999,360 characters" in shown
    assert f" {long} long" in shown  # a preview leaves nothing out
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_preview(show, preview):
    browser = show(preview_page([preview()], "recipes/my.yaml"))
    heads = browser.evaluate("[...document.querySelectorAll('.part h4')].map((x) => x.textContent)")
    assert heads == ["prompt 2 prompt tokens", "chosen 1 token in the loss, 2 cut", "rejected 2 tokens in the loss"]
    assert browser.evaluate("document.querySelectorAll('.part .tokens')[0].textContent") == "<s>Hello\n"
    assert browser.evaluate("document.querySelectorAll('.part .tokens')[1].textContent") == " fine long</s>"
    cut = "document.querySelectorAll('.part .tokens del')"
    assert browser.evaluate(f"{cut}.length") == 1
    assert browser.evaluate(f"{cut}[0].textContent") == " long</s>"
    assert browser.evaluate(f"getComputedStyle({cut}[0]).textDecorationLine") == "line-through"
    specials = "[...document.querySelectorAll('.part mark')].map((x) => x.textContent)"
    assert browser.evaluate(specials) == ["<s>", "</s>", "</s>"]
    colour = "[...document.querySelectorAll('.part .prompt, .part .response')].map((x) => getComputedStyle(x).color)"
    prompt, chosen, rejected = browser.evaluate(colour)
    assert prompt != chosen == rejected


def test_severity_has_words_as_well_as_colour(show, result):
    browser = show(preflight_page(result()))
    badges = browser.evaluate("[...document.querySelectorAll('article .badge')].map((x) => x.textContent)")
    assert badges == [s.value for s in (Severity.ERROR, Severity.WARNING, Severity.WARNING, Severity.INFO)]
