"""A preflight in the terminal: nothing is lost at any width, without colour, or to what a dataset holds."""

import io
import re
import time

import pytest
from rich.console import Console

from trl_plus.preflight.findings import Example, Severity
from trl_plus.preflight.table import preflight_report

ODD = ["[red]x[/red] \x1b]0;owned\x07 \x1b[2J \x9b31m \u202e", "\ud800 lone", "nul \0", "😀👩‍👩‍👧‍👦", "y" * 1_000_000]


def shown(result, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(preflight_report(result))
    return console.file.getvalue()


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_all_is_said_at_every_width(result, width):
    text = shown(result(), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    for words in (
        "source recipes/my.yaml", "method simpo", "model org/model", "format conversational pairs",
        "train 200 rows, all checked.", "eval 20 rows checked of a stream.",
        "max_length 128 drops 3 of 200 rows and cuts 7 chosen and 5 rejected responses.",
        "longer in 50.0% and shorter in 25.0% of 4 pairs; median difference +2.5 tokens.",
        "Labels: 15 true (75.0%), 5 false (25.0%).", "notes 80 rows begin with a system message.",
        "tokens median 95% max mean", "train prompt 41 120 149 48.2",
        "Errors (1)", "Warnings (2)", "Info (1)",
        "D105 Identical sides train, 4 of 200 rows (2.0%) In 4 rows both sides are the same text. "
        "row 17 Yes, of course. row 88 No. and 2 more rows Fix: Remove these rows.",
        "D501 Length bias train, the split as a whole", "D601 Overlap eval, 2 of 20 rows (10.0%)",
        "Not ready: `trl-plus train` stops on errors.",
    ):  # fmt: skip
        assert words in flat(text), words
    assert text.index("D105") < text.index("D501") < text.index("D601") < text.index("D701")


def test_the_last_line_has_the_totals(result):
    assert (
        shown(result()).splitlines()[-1].strip() == "1 error, 2 warnings, 1 info in 200 train and 20 eval rows, 1.2 s"
    )


def test_a_file_gets_the_words_and_no_colour(result, tmp_path):
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        Console(file=log).print(preflight_report(result()))
        log.seek(0)
        text = log.read()
    assert "\x1b" not in text
    assert "Errors (1)" in text


def test_colour_says_nothing_more(result):
    coloured = shown(result(), force_terminal=True, color_system="truecolor")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown(result())


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ({"findings": []}, "No errors and no warnings."),
        ({"findings": [], "splits": [], "model": None, "max_length": None}, "No errors and no warnings."),
    ],
)
def test_nothing_found(result, changes, verdict):
    assert verdict in shown(result(**changes))


def test_the_verdict_follows_the_gravest(result, finding):
    assert "Read the warnings" in shown(result(findings=[finding(severity=Severity.WARNING)]))
    assert "No errors or warnings, only notes." in shown(result(findings=[finding(severity=Severity.INFO)]))


def test_no_model_and_no_limit(result):
    assert "none named: tokens were not looked at" in shown(result(model=None))
    assert "No max_length: nothing is dropped or cut." in shown(result(max_length=None))


@pytest.mark.parametrize(
    "count, share", [(1, "<0.1%"), (4000, "100.0%"), (3999, ">99.9%"), (40, "1.0%"), (1000, "25.0%")]
)
def test_shares_are_not_rounded_to_none_or_all(result, finding, count, share):
    assert f"{count:,} of 4,000 rows ({share})" in shown(result(findings=[finding(count=count, checked=4000)]))


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:12]))
def test_text_of_a_dataset_is_shown_and_not_obeyed(result, finding, text, starts_of):
    odd = finding(title=text, sentence=text, cure=text, examples=(Example(1, f"a\n{text}"),))
    start = time.process_time()
    out = shown(result(source=text, method=text, model=text, format=text, notes=[text], findings=[odd]), 80)
    assert starts_of(seconds=time.process_time() - start) < 2000
    assert not {"\x07", "\x9b", "\u202e", "\0", "\x1b", "\ud800"} & set(out)
    out.encode()
    assert r"a\n" in out  # an example is one line
    assert ("+999,362 characters" in flat(out)) == (len(text) == 1_000_000)
    assert ("[red]x[/red]" in out) == ("[red]" in text)
