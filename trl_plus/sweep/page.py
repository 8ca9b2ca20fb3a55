"""A sweep as one HTML page, which needs no other file and no network."""

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_plus.report.curves import tick_texts, ticks
from trl_plus.sweep.output import cells, figure, names, remark, state
from trl_plus.sweep.results import MEASURES, Results
from trl_plus.sweep.statistics import Difference
from trl_plus.ui.console import clipped
from trl_plus.ui.pages import render

WIDTH, ROW = 560.0, 30.0  # of the area inside the axes, and the height of one line in it
_TEXT = 200


@dataclass(frozen=True)
class Strip:
    """One line of a plot: marks, an interval or None, and a text for whoever points at it.

    Attributes:
        state: "best", "holds" or "".
        dots: positions of single values.
        at: position of the mean; None without one.
        span: ends of the interval, cut at the plot's edges.
    """

    label: str
    state: str
    y: float
    dots: list[float]
    at: float | None
    span: tuple[float, float] | None
    text: str


@dataclass(frozen=True)
class Plot:
    """Lines over one horizontal axis. `zero` is the position of no difference, or None."""

    strips: list[Strip]
    x_ticks: list[tuple[float, str]]
    height: float
    zero: float | None


def sweep_page(found: Results) -> str:
    """The page. It shows everything without JavaScript."""
    plan = found.plan
    head, *more = found.sentences
    holds = any(each.holds for each in found.differences)
    return render(
        "sweep.html.j2",
        "run.css",
        "sweep.css",
        name=clipped(plan.folder.resolve().name, _TEXT),
        keys=plan.keys,
        state="clean" if holds else "info",
        head=clipped(head, 1000),
        sentences=[clipped(sentence, 1000) for sentence in more],
        facts=[(title, clipped(value, _TEXT)) for title, value in _facts(found)],
        accuracy=_accuracies(found),
        differences=_differences(found, found.differences, percent=True),
        margins=_differences(found, found.margins, percent=False),
        unit=f"by {MEASURES[found.unit]}; no verdict is taken from it",
        remark=remark(found),
        rows=[
            {"label": clipped(row.label, _TEXT), "cells": cells(row), "state": state(found, place)}
            for place, row in enumerate(found.rows)
        ],
        runs=_runs(found),
        failed=[(clipped(label, _TEXT), clipped(problem, 2000)) for label, problem in found.failed.items()],
        width=WIDTH,
        row=ROW,
    )


def _facts(found: Results) -> list[tuple[str, str]]:
    plan = found.plan
    recipe = plan.runs[0].recipe
    method = "several" if "method" in plan.keys else recipe.method.name
    return [
        ("Recipe", recipe.argument),
        ("Method", method),
        ("Values", f"{len(plan.variants)} of {' and '.join(plan.keys)}"),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Held out", f"{found.pairs:,} pairs of {found.prompts:,} prompts"),
        ("Scored by", MEASURES[found.measure]),
        *([("Budget", f"{plan.budget:,} optimizer steps")] if plan.budget is not None else []),
    ]


def _accuracies(found: Results) -> Plot | None:
    """The accuracy of every run, and the mean of every value."""
    known = [value for row in found.rows for value in row.accuracies if not math.isnan(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    room = max((high - low) * 0.08, 0.005)
    place, x_ticks = _axis(max(0.0, low - room), min(1.0, high + room))
    strips = [
        Strip(
            label=clipped(row.label, 60),
            state="best" if at == found.best else "",
            y=ROW * (at + 0.5),
            dots=[place(value) for value in row.accuracies if not math.isnan(value)],
            at=None if math.isnan(row.accuracy) else place(row.accuracy),
            span=None,
            text=f"{row.label}: {cells(row)[1]}, mean {figure(row.accuracy)}",
        )
        for at, row in enumerate(found.rows)
    ]
    return Plot(strips, x_ticks, ROW * len(strips), None)


def _differences(found: Results, differences: Sequence[Difference], percent: bool) -> Plot | None:
    """Every difference with its interval, the better value first. Wide intervals are cut at the plot's edges."""
    shown = [_ordered(each) for each in differences if not math.isnan(each.value)]
    if not shown:
        return None
    scale = 100.0 if percent else 1.0
    furthest = max(abs(value) for _, value, _, _, _ in shown)
    ends = [min(abs(end), 4 * furthest or 1.0) for _, _, low, high, _ in shown for end in (low, high)]
    reach = scale * max(1.15 * furthest, *ends) or 1.0
    place, x_ticks = _axis(-reach, reach)
    name = names(found)
    strips = []
    for at, ((first, second), value, low, high, holds) in enumerate(shown):
        low, high = scale * low, scale * high
        words = f"{name[first]} − {name[second]}"
        unit = " points" if percent else ""
        interval = f"{low:+.3g} to {high:+.3g}{unit}" if math.isfinite(low) else "no interval"
        strips.append(
            Strip(
                label=clipped(words, 80),
                state="holds" if holds else "",
                y=ROW * (at + 0.5),
                dots=[],
                at=place(scale * value),
                span=(place(max(low, -reach)), place(min(high, reach))),
                text=f"{words}: {scale * value:+.3g}{unit} [{interval}]",
            )
        )
    return Plot(strips, x_ticks, ROW * len(strips), place(0.0))


def _ordered(each: Difference) -> tuple[tuple[int, int], float, float, float, bool]:
    """A difference as one that is not negative."""
    if each.value < 0:
        return (each.second, each.first), -each.value, -each.high, -each.low, each.holds
    return (each.first, each.second), each.value, each.low, each.high, each.holds


def _axis(low: float, high: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """The position of a value, and the ticks between the ends."""

    def place(value: float) -> float:
        return round(WIDTH * (value - low) / (high - low), 2)

    found = [value for value in ticks(low, high, 5) if low <= value <= high]
    texts = tick_texts(found) if len(found) > 1 else [f"{value:g}" for value in found]
    return place, list(zip(map(place, found), texts, strict=True))


def _runs(found: Results) -> list[dict[str, Any]]:
    """Every run: values, seed, accuracy, and the command that shows it."""
    plan = found.plan
    shown = []
    for run in plan.runs:
        row = found.rows[run.place]
        folder = plan.folder / run.name
        shown.append(
            {
                "label": clipped(row.label, _TEXT),
                "seed": run.seed,
                "accuracy": figure(row.accuracies[plan.seeds.index(run.seed)]),
                "margin": figure(row.margins[plan.seeds.index(run.seed)], "+.3g"),
                "command": f"trl-plus report {shlex.quote(os.path.relpath(folder))}",
            }
        )
    return shown
