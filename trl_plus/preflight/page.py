"""A preflight as one HTML page, which needs no other file and no network."""

from typing import Any

from trl_plus.preflight import words
from trl_plus.preflight.findings import Finding, Result, Severity, Shortcut, Split
from trl_plus.preflight.plots import HEIGHT, WIDTH, difference_plot, length_plot, shortcut_plot
from trl_plus.preflight.preview_shown import heading, parts_of
from trl_plus.ui.console import clipped
from trl_plus.ui.pages import render

_OPEN = 1  # previews that are unfolded when the page is opened


def preflight_page(result: Result) -> str:
    """The page. It shows all findings without JavaScript; with it they can be filtered."""
    findings = [finding for group in words.by_severity(result.findings).values() for finding in group]
    return render(
        "preflight.html.j2",
        result=result,
        words=words,
        name=clipped(result.source, words.PARAGRAPH),
        notes=[clipped(note, words.PARAGRAPH) for note in result.notes],
        state=next((severity.value for severity in Severity if result.count(severity)), "clean"),
        severities=[(severity.value, words.PLURALS[severity], result.count(severity)) for severity in Severity],
        codes=_codes(findings),
        splits_found=list(dict.fromkeys(finding.split for finding in findings)),
        findings=[finding_view(finding) for finding in findings],
        splits=[split_view(split, result.max_length) for split in result.splits],
        previews=result.previews,
        open_previews=_OPEN,
        heading=heading,
        parts_of=parts_of,
        width=WIDTH,
        height=HEIGHT,
    )


def _codes(findings: list[Finding]) -> list[tuple[str, str]]:
    """(code, title) of each code that occurs, in the order of the codes."""
    return sorted({finding.code: clipped(finding.title, 60) for finding in findings}.items())


def finding_view(finding: Finding) -> dict[str, Any]:
    """A finding as a template draws it."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "split": finding.split,
        "title": clipped(finding.title, words.PARAGRAPH),
        "sentence": clipped(words.beyond_title(finding), words.PARAGRAPH),
        "cure": clipped(finding.cure, words.PARAGRAPH),
        "extent": words.extent(finding),
        "share": round(100 * finding.share, 2) if finding.count else None,
        "examples": [(example.row, words.detail(example)) for example in finding.examples],
        "more": words.more_rows(finding),
    }


def split_view(split: Split, max_length: int | None) -> dict[str, Any]:
    """A split as the macro `plots.split` draws it."""
    keys = sorted({key for lengths in split.lengths for key in lengths.quantiles}, key=float)
    return {
        "name": split.name,
        "rows": words.rows_of(split),
        "limit": words.effect_of_limit(split, max_length),
        "lengths": [(lengths, length_plot(lengths, max_length)) for lengths in split.lengths],
        "quantiles": [(key, words.quantile_name(key)) for key in keys],
        "labels": _labels(split.labels) if split.labels else None,
        "difference": (difference_plot(split.differences), words.length_difference(split.differences))
        if split.differences
        else None,
        "shortcut": None if split.shortcut is None else _shortcut(split.shortcut),
    }


_TRAITS = 8  # features of the shortcut in the table beside its plot


def _shortcut(found: Shortcut) -> dict[str, Any]:
    """Accuracy of surface features alone: plot, sentence, and (words, weight, share alone) of the heaviest ones."""
    return {
        "plot": shortcut_plot(found),
        "sentence": words.shortcut_share(found),
        "traits": [(trait.words, f"{abs(trait.weight):.2f}", f"{trait.alone:.3f}") for trait in found.traits[:_TRAITS]],
    }


def _labels(labels: dict[str, int]) -> dict[str, Any]:
    """The stacked bar of the labels: (label, rows, x, width), in hundredths of its length."""
    total, x, bars = sum(labels.values()), 0.0, []
    for label, count in labels.items():
        width = 100 * count / total if total else 0.0
        bars.append((label, count, round(x, 3), round(width, 3)))
        x += width
    return {"bars": bars, "sentence": words.label_balance(labels)}
