"""The numbers behind the curves, for the script of the page: other axes, smoothing, zoom, and files of numbers."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from trl_plus.report.curves import HEIGHT, POINTS, WIDTH, Panel, points_of, resumed_at
from trl_plus.report.run import Run

Known = list[tuple[float, float]]


def script_data(runs: Sequence[tuple[str, Run]], panels: Sequence[Panel]) -> str:
    """JSON: the runs with their axes, the moments at which they were resumed, and the lines of every plot.
    A line names its steps by their place among `steps`.

    A number that JSON does not have is the text "NaN", "Infinity" or "-Infinity", as JavaScript's Number reads it.
    """
    steps: dict[tuple[float | int | str, ...], int] = {}  # most lines share theirs

    def place(points: Known) -> int:
        return steps.setdefault(tuple(_plain(step) for step, _ in points), len(steps))

    resumes = [[at for at in map(resumed_at, run.begins) if at is not None] for _, run in runs]
    content: dict[str, Any] = {
        "width": WIDTH,
        "height": HEIGHT,
        "points": POINTS,
        "runs": [{"name": name, "resumed": at, **axes(run)} for (name, run), at in zip(runs, resumes, strict=True)],
        "plots": [
            {
                "title": plot.title,
                "bounds": plot.bounds,
                "level": plot.base,
                "lines": [
                    {
                        "run": drawn.whole.run,
                        "metric": drawn.whole.metric,
                        "name": drawn.whole.name,
                        "look": f"c{drawn.whole.colour}" + (" dashed" if drawn.whole.dashed else ""),
                        "dots": drawn.whole.dots,
                        "steps": place(drawn.whole.points),
                        "values": [_plain(value) for _, value in drawn.whole.points],
                    }
                    for drawn in plot.lines
                ],
            }
            for plot in panels
        ],
    }
    content["steps"] = list(steps)
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def _plain(value: float) -> float | int | str:
    if not isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def axes(run: Run) -> dict[str, Any]:
    """The steps of a run that have a log, with the training tokens and the seconds of training until then.

    Seconds follow from `num_tokens` and `tokens_per_second`, which leave evaluations and pauses out. A list is None if
    the run did not log what it is made of.
    """
    steps = sorted({float(line["step"]) for line in run.log})
    speeds = dict(points_of(run.log, "tokens_per_second"))
    tokens: Known = [(0.0, 0.0)]
    seconds: Known = [(0.0, 0.0)]
    before = 0.0
    for step, count in points_of(run.log, "num_tokens"):
        if not step or not isfinite(count):
            continue
        more = count - before if count >= before else count  # a run that counts anew
        before = count
        tokens.append((step, tokens[-1][1] + more))
        if 0 < speeds.get(step, 0.0) < inf:
            seconds.append((step, seconds[-1][1] + more / speeds[step]))
    return {
        "steps": [_plain(step) for step in steps],
        "tokens": None if len(tokens) == 1 else [round(_between(tokens, step)) for step in steps],
        "seconds": None if len(seconds) == 1 else [round(_between(seconds, step), 2) for step in steps],
    }


def _between(known: Known, step: float) -> float:
    """The value at a step, on straight lines between the known ones; the last one after them."""
    place = bisect_left(known, (step, float("-inf")))
    if place == len(known):
        return known[-1][1]
    (left, low), (right, high) = known[max(place - 1, 0)], known[place]
    return high if right == left else low + (high - low) * (step - left) / (right - left)
