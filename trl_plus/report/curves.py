"""The curves of a run as points, ticks and words, in the units of an SVG; a template draws them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, floor, inf, isfinite, log10
from statistics import fmean

from trl_plus.report.differences import held_out_groups
from trl_plus.report.run import Run

WIDTH, HEIGHT = 400.0, 150.0  # of the area inside the axes; the template adds room for their numbers
COLOURS = 8  # of page.css; then they repeat with the other kind of line
POINTS = 200  # of one line; where more was logged, a point is the mean of neighbours
_TICKS = 4
_NAMED = 2  # lines that a note names

Log = dict[str, float]


@dataclass(frozen=True)
class Line:
    """One metric of one run over the optimizer steps.

    Attributes:
        name: in the legend.
        colour: 0 for the first colour, 1 for the second.
        dashed: drawn with dashes.
        dots: every point has a mark: what is measured on held-out rows.
        points: (step, value); a value that is not finite breaks the line.
        run: place of its run among the runs of the page.
        metric: its name in metrics.jsonl.
    """

    name: str
    colour: int
    dashed: bool
    dots: bool
    points: list[tuple[float, float]]
    run: int = 0
    metric: str = ""


@dataclass(frozen=True)
class Drawn:
    """A line in the units of the plot: stretches of "x,y x,y ...", and marks. `ends` is its first and last value.

    `line` has at most POINTS points, `whole` all of them.
    """

    line: Line
    whole: Line
    stretches: list[str]
    marks: list[tuple[float, float]]
    ends: str


@dataclass(frozen=True)
class Stripe:
    """The hover area of one step: left edge, width and middle of a stripe, and its text."""

    x: float
    width: float
    middle: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        unit: what the numbers are, in words.
        y_ticks, x_ticks: (position, text).
        level: position of a line to compare with (chance, zero), or None.
        marks: (x, text) of moments in the run.
        notes: what the drawing leaves out or averages.
        bounds, base: values that the axis must reach, and the value at `level`.
        flat: words for a plot without a curve: one value throughout, or one log; "" otherwise.
    """

    title: str
    unit: str
    lines: list[Drawn]
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]
    level: float | None
    stripes: list[Stripe]
    marks: list[tuple[float, str]]
    notes: list[str] = field(default_factory=list)
    bounds: tuple[float | None, float | None] = (None, None)
    base: float | None = None
    flat: str = ""


def points_of(log: Iterable[Log], metric: str) -> list[tuple[float, float]]:
    """(step, value) of every line of the log that has the metric; of two at one step the later one."""
    found = {
        float(line["step"]): float(line[metric])
        for line in log
        if isinstance(line.get(metric), int | float) and not isinstance(line[metric], bool)
    }
    return sorted(found.items())


def panel(
    title: str,
    unit: str,
    lines: Sequence[Line],
    last: float,
    bounds: tuple[float | None, float | None] = (None, None),
    level: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> Panel:
    """Lines over one axis of steps, from 0 to `last`.

    Args:
        bounds: values that the axis must reach; None leaves that end to the data.
        level: a value to compare with.
        marks: (step, text).
    """
    notes = _notes(lines)
    thin = [_thinned(line) for line in lines]
    values = [value for line in thin for _, value in line.points if isfinite(value)]
    low, high = _range(values, bounds)
    y_ticks = ticks(low, high, _TICKS)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    last = max(last, 1.0)

    def x(step: float) -> float:
        return round(WIDTH * step / last, 2)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (high - low)), 2)

    return Panel(
        title=title,
        unit=unit,
        lines=[_drawn(line, whole, x, y) for line, whole in zip(thin, lines, strict=True)],
        y_ticks=[(y(value), text) for value, text in zip(y_ticks, tick_texts(y_ticks), strict=True)],
        x_ticks=[(x(step), f"{step:,.0f}") for step in ticks(0, last, 5, whole=True) if step <= last],
        level=y(level) if level is not None and low <= level <= high else None,
        stripes=_stripes(thin, x),
        marks=[(x(step), text) for step, text in marks],
        notes=list(dict.fromkeys(notes)),
        bounds=bounds,
        base=level,
        flat=_flat(lines),
    )


def figure(value: float, digits: int = 4) -> str:
    """A number with four significant digits at most, as short as it can be: 0.0015, 1e-6, 12,345."""
    if not isfinite(value):
        return str(value)
    if 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round values that reach over [low, high], about `count` of them: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as tell neighbours apart."""
    step, largest = values[1] - values[0], max(map(abs, values))
    if largest >= 1e6 or step < 1e-5:
        return [figure(float(f"{value:.6g}")) if abs(value) > step / 2 else "0" for value in values]
    decimals = max(0, -floor(log10(step) + 1e-9))
    return [f"{value + 0.0:,.{decimals}f}" for value in (round(value, decimals) for value in values)]


def _range(values: Sequence[float], bounds: tuple[float | None, float | None]) -> tuple[float, float]:
    """The least range that holds all values and bounds; a single value gets some room, but not beyond a bound."""
    held = [*values, *(bound for bound in bounds if bound is not None)]
    low, high = min(held, default=0.0), max(held, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 1.0
        return low if low == bounds[0] else low - room, high if high == bounds[1] else high + room
    return low, high


def _thinned(line: Line) -> Line:
    """The line with at most POINTS points: means of equally many neighbours. A value that is not finite stays."""
    size = ceil(len(line.points) / POINTS)
    if size <= 1:
        return line
    groups = [line.points[start : start + size] for start in range(0, len(line.points), size)]
    points = [(fmean(step for step, _ in group), _mean(value for _, value in group)) for group in groups]
    return replace(line, points=points)


def _flat(lines: Sequence[Line]) -> str:
    values = [value for line in lines for _, value in line.points]
    if all(len(line.points) == 1 for line in lines):
        return "logged once"
    if all(isfinite(value) for value in values) and len(set(values)) == 1:
        return f"{figure(values[0])} throughout"
    return ""


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return fmean(values) if all(map(isfinite, values)) else inf


def _notes(lines: Sequence[Line]) -> list[str]:
    sizes: dict[int, list[str]] = {}
    notes = []
    for line in lines:
        name = line.name or "the line"
        sizes.setdefault(ceil(len(line.points) / POINTS), []).append(name)
        lost = [step for step, value in line.points if not isfinite(value)]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            notes.append(f"{name}: not a finite number at step {lost[0]:g}{more}")
    means = [
        f"{', '.join(names) if len(names) <= _NAMED else f'{len(names)} lines'}: each point is the mean of {size} logs"
        for size, names in sizes.items()
        if size > 1
    ]
    return means + notes


def _drawn(line: Line, whole: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Drawn:
    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in line.points:
        if isfinite(value):
            stretches[-1].append((x(step), y(value)))
        elif stretches[-1]:
            stretches.append([])
    alone = [stretch[0] for stretch in stretches if len(stretch) == 1]
    marks = [point for stretch in stretches for point in stretch] if line.dots else alone
    first, last = whole.points[0][1], whole.points[-1][1]
    ends = figure(first, 3) if len(whole.points) == 1 else f"{figure(first, 3)} → {figure(last, 3)}"
    if line.dots and len(whole.points) == 2:
        stretches = []  # nothing is known between two evaluations: a line would be invented
    texts = [" ".join(f"{a:g},{b:g}" for a, b in stretch) for stretch in stretches if len(stretch) > 1]
    return Drawn(line, whole, texts, marks, ends)


def _stripes(lines: Sequence[Line], x: Callable[[float], float]) -> list[Stripe]:
    """One stripe for each step at which a line has a point, from half-way to its neighbours."""
    steps = sorted({step for line in lines for step, _ in line.points})
    values = [dict(line.points) for line in lines]
    edges = [0.0, *(x((a + b) / 2) for a, b in pairwise(steps)), WIDTH]
    stripes = []
    for index, step in enumerate(steps):
        known = [
            f"{line.name} {figure(at[step])}".strip() for line, at in zip(lines, values, strict=True) if step in at
        ]
        text = "\n".join([f"step {step:g}", *known])
        stripes.append(Stripe(edges[index], round(max(edges[index + 1] - edges[index], 0.5), 2), x(step), text))
    return stripes


# -- the metrics that are drawn -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plot:
    """A plot of one metric, or of two that belong together.

    Attributes:
        metrics: (metric, its name in the legend; "" if the plot has only one).
        bounds, level: as `curves.panel` takes them.
    """

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    bounds: tuple[float | None, float | None] = (None, None)
    level: float | None = None


def _one(
    title: str, unit: str, metric: str, low: float | None = None, high: float | None = None, **more: float
) -> Plot:
    return Plot(title, unit, ((metric, ""),), (low, high), **more)


PLOTS = (
    _one("Loss", "mean over the rows of a step", "loss"),
    _one("Reward accuracy", "share of pairs won; the line is chance", "rewards/accuracies", 0.0, 1.0, level=0.5),
    _one("Reward margin", "mean reward, chosen minus rejected", "rewards/margins", level=0.0),
    Plot("Rewards", "mean of each side", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")), level=0.0),
    Plot(
        "Log-probabilities", "mean of each side, in nats", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))
    ),
    _one("Reference point", "z_ref of KTO, in nats", "z_ref", 0.0),
    _one("Log odds ratio", "mean over the pairs of a step", "log_odds_ratio", level=0.0),
    _one("NLL", "nats per token", "nll_loss"),
    _one("Gradient norm", "before clipping", "grad_norm", 0.0),
    _one("Learning rate", "as scheduled", "learning_rate", 0.0),
    _one("Tokens per second", "all processes together", "tokens_per_second", 0.0),
    _one("Tokens per second", "transformers' count", "train_tokens_per_second", 0.0),
    _one("Share of the peak", "of the device's FLOPs per second", "mfu", 0.0),
    _one("Peak memory", "GiB on the first device, so far", "peak_memory_gib", 0.0),
    _one("Padding", "share of the batch", "padding_ratio", 0.0),
    _one("One-label steps", "share of the steps since the last log", "one_label_steps", 0.0, 1.0),
)


def panels_of(runs: Sequence[tuple[str, Run]]) -> list[Panel]:
    """The plots of one run, or of several over the same axes. A metric that no run has logged has no plot.

    Of one run, colours tell training from held-out rows, or the two sides apart. Of several, colours and dashes tell
    the runs apart, and each side has a plot of its own. Held-out values have dots.

    Args:
        runs: (name in the legend, run).
    """
    last = max((float(line["step"]) for _, run in runs for line in run.log), default=0.0)
    marks = [mark for name, run in runs for mark in resumed(name if len(runs) > 1 else "", run)]
    groups = held_out_groups([run for _, run in runs])
    found = []
    for plot in _apart(PLOTS) if len(runs) > 1 else PLOTS:
        lines = [line for index, (name, run) in enumerate(runs) for line in _lines(plot, index, name, run, len(runs))]
        if lines:
            made = panel(plot.title, plot.unit, lines, last, plot.bounds, plot.level, marks)
            if len({groups[line.run] for line in lines if line.dots}) > 1:
                made.notes.append("the held-out rows of the runs differ: do not compare the lines with dots")
            found.append(made)
    return found


def _apart(plots: Sequence[Plot]) -> list[Plot]:
    """The same plots, those of two sides cut in two."""
    found: list[Plot] = []
    for plot in plots:
        for metric, side in plot.metrics:
            title = f"{plot.title}, {side}" if side else plot.title
            unit = plot.unit.replace("each side", f"the {side} side")
            found.append(replace(plot, title=title, unit=unit, metrics=((metric, ""),)))
    return found


def _lines(plot: Plot, index: int, run_name: str, run: Run, runs: int) -> list[Line]:
    """The lines of one run. What is never measured on held-out rows is not called "train"."""
    train = "train" if any(f"eval_{metric}" in line for metric, _ in plot.metrics for line in run.log) else ""
    lines = []
    for place, (metric, side) in enumerate(plot.metrics):
        for held_out in (False, True):
            points = points_of(run.log, f"eval_{metric}" if held_out else metric)
            words = (run_name if runs > 1 else "", side, "held out" if held_out else train)
            colour = index % COLOURS if runs > 1 else place if side else int(held_out)
            if points:
                name = f"eval_{metric}" if held_out else metric
                lines.append(Line(" ".join(filter(None, words)), colour, dashed(index), held_out, points, index, name))
    return lines


def dashed(index: int) -> bool:
    """True for every second run; the other way round once all colours are used, so that 16 runs look different."""
    return (index % 2 == 1) != (index % (2 * COLOURS) >= COLOURS)


def resumed(name: str, run: Run) -> list[tuple[float, str]]:
    """(step, words) of each time that the run was resumed."""
    steps = [resumed_at(begin) for begin in run.begins]
    return [(step, f"{name} resumed at step {step}".strip()) for step in steps if step is not None]


def resumed_at(begin: dict[str, object]) -> int | None:
    """The step of the checkpoint that a begin of a run went on from; None for a fresh one."""
    step = str(begin.get("resumed_from") or "").rstrip("/").rpartition("-")[2]
    return int(step) if step.isdigit() else None
