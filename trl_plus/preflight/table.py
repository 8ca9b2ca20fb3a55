"""A preflight in the terminal: what was looked at, what was found, and the totals in the last line."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trl_plus.preflight.findings import Finding, Result, Severity, Split
from trl_plus.preflight.words import (
    PARAGRAPH,
    PLURALS,
    beyond_title,
    by_severity,
    detail,
    effect_of_limit,
    extent,
    label_balance,
    length_difference,
    more_rows,
    quantile_name,
    rows_of,
    shortcut_share,
    totals,
    verdict,
)
from trl_plus.ui.console import clipped

WIDTH = 110  # columns of running text: longer lines are hard to read
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan"}


def preflight_report(result: Result) -> RenderableType:
    """The whole result, for `console.print`. Says the same with and without colour, at any width."""
    return Group(*_parts(result))


def _parts(result: Result) -> Iterator[RenderableType]:
    yield from _summary(result)
    yield Text()
    for severity, findings in by_severity(result.findings).items():
        yield Text(f"{PLURALS[severity].capitalize()} ({len(findings):,})", style=_STYLES[severity])
        for finding in findings:
            yield Padding(_finding(finding), (0, 0, 1, 0))
    yield _text(verdict(result), style="bold")
    yield _text(totals(result))


def _text(text: str, style: str = "") -> Text:
    """Text, not str: square brackets in it are no markup, and nothing in it is obeyed."""
    return Text(clipped(text, PARAGRAPH), style=style, overflow="fold")


def _grid(*columns: dict) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(**column)
    return grid


# -- what was looked at ---------------------------------------------------------------------------------------------


def _summary(result: Result) -> Iterator[RenderableType]:
    facts = _grid({"style": "dim", "no_wrap": True}, {"overflow": "fold", "max_width": WIDTH})
    facts.add_row("source", _text(result.source, "bold"))
    facts.add_row("method", _text(result.method))
    facts.add_row("model", _text(result.model or "none named: tokens were not looked at"))
    facts.add_row("format", _text(result.format))
    for split in result.splits:
        facts.add_row(split.name, Group(*(_text(line) for line in _about(split, result.max_length))))
    for index, note in enumerate(result.notes):
        facts.add_row("" if index else "notes", _text(note))
    yield facts
    if any(split.lengths for split in result.splits):
        yield Text()
        yield _lengths(result.splits)


def _about(split: Split, max_length: int | None) -> Iterator[str]:
    yield f"{rows_of(split)}."
    if split.lengths:
        yield effect_of_limit(split, max_length)
    if split.labels is not None:
        yield f"Labels: {label_balance(split.labels)}."
    if split.differences:
        yield length_difference(split.differences)
    if split.shortcut is not None:
        yield shortcut_share(split.shortcut)


def _lengths(splits: list[Split]) -> Table:
    """Quantiles of the token lengths, a line per split and part."""
    keys = sorted({key for split in splits for lengths in split.lengths for key in lengths.quantiles}, key=float)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("tokens", overflow="fold")
    for name in (*map(quantile_name, keys), "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    for split in splits:
        for lengths in split.lengths:
            quantiles = (lengths.quantiles.get(key) for key in keys)
            cells = ["-" if value is None else f"{value:,.0f}" for value in quantiles]
            table.add_row(_text(f"{split.name} {lengths.part}"), *cells, f"{lengths.mean:,.1f}")
    return table


# -- what was found -------------------------------------------------------------------------------------------------


def _finding(finding: Finding) -> Table:
    """Code and split beside what was found, its first rows, and the cure."""
    grid = _grid({"no_wrap": True}, {"overflow": "fold", "max_width": WIDTH})
    head = _text(finding.title, "bold")
    head.append_text(_text(f"  {finding.split}, {extent(finding)}", "not bold"))
    body: list[RenderableType] = [head, *map(_text, filter(None, [beyond_title(finding)]))]
    if finding.examples:
        body.append(_examples(finding))
    cure = Text("Fix: ", style="bold")
    cure.append_text(_text(finding.cure, "not bold"))
    grid.add_row(_text(finding.code, _STYLES[finding.severity]), Group(*body, cure))
    return grid


def _examples(finding: Finding) -> Table:
    grid = _grid({"no_wrap": True, "style": "dim"}, {"overflow": "fold"})
    for example in finding.examples:
        grid.add_row(f"row {example.row}", Text(detail(example), overflow="fold"))
    more = more_rows(finding)
    if more:
        grid.add_row("", Text(more, style="dim"))
    return grid
