"""The plots of a preflight as bars, marks and numbers, in the units of an SVG; the templates draw them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from trl_plus.preflight.findings import Lengths, Shortcut

WIDTH, HEIGHT = 320.0, 112.0  # of the bars; the templates add room for the axis
BINS = 16  # of the difference plot, on either side of zero
_OUTER = 0.98  # share of pairs that the difference plot shows at their place; the outer bars gather the others


@dataclass(frozen=True)
class Bar:
    """One bar: its box, what it counts, and the class it is drawn in."""

    x: float
    y: float
    width: float
    height: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Plot:
    """Bars over an axis.

    Attributes:
        ticks: (x, text) along the axis.
        limit: x of `max_length`; None where there is none, or it lies right of the axis.
        peak: rows of the highest bar.
    """

    bars: list[Bar]
    ticks: list[tuple[float, str]]
    limit: float | None
    peak: int


def length_plot(lengths: Lengths, max_length: int | None) -> Plot:
    """A histogram of one part. All bins are drawn equally wide, so that bins that grow with the length stay legible."""
    edges, bins = lengths.edges, max(len(lengths.counts), 1)
    # an axis that ends shortly before max_length is drawn on until there
    slots = max(bins, min(_slot(max_length, edges), 1.5 * bins)) if max_length is not None and edges else bins
    width, peak = WIDTH / slots, max(lengths.counts, default=0)
    bars = []
    for index, count in enumerate(lengths.counts):
        low, high = edges[index], edges[index + 1]
        over = max_length is not None and low >= max_length
        text = f"{low:,} to {high:,} tokens: {_rows(count)}"
        bars.append(_bar(index * width, width, count, peak, text, "over" if over else ""))
    limit = None
    if max_length is not None and edges and _slot(max_length, edges) <= slots:
        limit = round(_slot(max_length, edges) * width, 2)
    ticks = [(round(_slot(value, edges) * width, 2), f"{value:,}") for value in _ticks(edges)]
    return Plot([bar for bar in bars if bar.height], ticks, limit, peak)


def difference_plot(pairs: Sequence[tuple[int, int]]) -> Plot:
    """A histogram of chosen minus rejected length, zero in the middle and in a bar of its own."""
    differences = [chosen - rejected for chosen, rejected in pairs]
    sizes = sorted(abs(difference) for difference in differences)
    step = max(1, ceil(sizes[ceil(_OUTER * len(sizes)) - 1] / BINS)) if sizes else 1
    counts = [0] * (2 * BINS + 1)
    for difference in differences:
        away = min(ceil(abs(difference) / step), BINS)
        counts[BINS + (away if difference > 0 else -away)] += 1
    width, peak = WIDTH / len(counts), max(counts)
    bars = [
        _bar(index * width, width, count, peak, f"{_difference(index - BINS, step)}: {_rows(count)}", _side(index))
        for index, count in enumerate(counts)
        if count
    ]
    middle = WIDTH / 2
    outer = (BINS - 1) * step + 1
    ticks = [(0.0, f"≤ {-outer:,}"), (middle, "0"), (WIDTH, f"≥ {outer:,}")]
    return Plot(bars, ticks, None, peak)


def shortcut_plot(found: Shortcut) -> Plot:
    """A histogram of the scores of the preferred side: left of the middle the rule is wrong."""
    edges, counts = found.edges, found.counts
    width, peak, last = WIDTH / max(len(counts), 1), max(counts, default=0), len(counts) - 1
    bars = []
    for index, count in enumerate(counts):
        low, high = edges[index], edges[index + 1]
        span = (
            f"{low:+.1f} to {high:+.1f}"
            if 0 < index < last
            else f"{high:+.1f} or less"
            if index == 0
            else f"{low:+.1f} or more"
        )
        kind = "shorter" if high <= 0 else "longer"
        bars.append(_bar(index * width, width, count, peak, f"log-odds {span}: {_rows(count)}", kind))
    ticks = [(0.0, f"≤ {edges[0]:+.1f}"), (WIDTH / 2, "0"), (WIDTH, f"≥ {edges[-1]:+.1f}")]
    return Plot([bar for bar in bars if bar.height], ticks, None, peak)


def _side(index: int) -> str:
    return "equal" if index == BINS else "longer" if index > BINS else "shorter"


def _difference(away: int, step: int) -> str:
    """The bin `away` from zero in words."""
    if not away:
        return "equal length"
    side, size = ("longer" if away > 0 else "shorter"), abs(away)
    low, high = (size - 1) * step + 1, size * step
    if size == BINS:
        return f"chosen {low:,} or more tokens {side}"
    return f"chosen {low:,} to {high:,} tokens {side}" if low < high else f"chosen {low:,} tokens {side}"


def _bar(x: float, width: float, count: int, peak: int, text: str, kind: str) -> Bar:
    height = max(1.0, HEIGHT * count / peak) if count else 0.0  # one row among thousands is still seen
    return Bar(round(x + 0.5, 2), round(HEIGHT - height, 2), round(max(width - 1, 1), 2), round(height, 2), text, kind)


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _slot(value: float, edges: Sequence[int]) -> float:
    """The position of a value, in bins from the left; beyond the edges by the width of the outer bin."""
    index = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
    low, high = edges[index], edges[index + 1]
    return index + (value - low) / (high - low) if high > low else float(index)


def _ticks(edges: Sequence[int]) -> list[int]:
    """At most six values to write on the axis: round ones where bins are equally wide, else edges."""
    if len(edges) < 2:
        return []
    widths = [high - low for low, high in pairwise(edges)]
    if max(widths) > min(widths) + 1:
        return list(edges[:: ceil(len(edges) / 6)])
    span = edges[-1] - edges[0]
    power = 10 ** floor(log10(max(span, 1) / 5)) if span >= 5 else 1
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= span)
    return list(range(ceil(edges[0] / step) * step, edges[-1] + 1, step))
