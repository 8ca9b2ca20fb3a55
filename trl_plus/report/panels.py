"""Which metrics of a run are drawn, together with what, and in which colours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trl_plus.report.curves import Line, Panel, panel, points_of
from trl_plus.report.run import Run


@dataclass(frozen=True)
class Plot:
    """A plot of one metric, or of two that belong together.

    Attributes:
        metrics: (metric, its name in the legend; "" where the plot has only one).
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
    _one("Padding", "share of the batch", "padding_ratio", 0.0),
    _one("One-label steps", "share of the steps since the last log", "one_label_steps", 0.0, 1.0),
)


def panels_of(runs: Sequence[tuple[str, Run]]) -> list[Panel]:
    """The plots of one run, or of two over the same axes. A metric that no run has logged gives none.

    Of one run, colours tell training from held-out rows, or the two sides apart. Of two, they tell the runs apart, the
    second is dashed, and each side has a plot of its own. Held-out values have dots.

    Args:
        runs: (name in the legend, run).
    """
    last = max((float(line["step"]) for _, run in runs for line in run.log), default=0.0)
    marks = [mark for name, run in runs for mark in _resumed(name if len(runs) > 1 else "", run)]
    found = []
    for plot in _apart(PLOTS) if len(runs) > 1 else PLOTS:
        lines = [line for index, (name, run) in enumerate(runs) for line in _lines(plot, index, name, run, len(runs))]
        if lines:
            found.append(panel(plot.title, plot.unit, lines, last, plot.bounds, plot.level, marks))
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
            colour = index if runs > 1 else place if side else int(held_out)
            if points:
                lines.append(Line(" ".join(filter(None, words)), colour, index > 0, held_out, points))
    return lines


def _resumed(name: str, run: Run) -> list[tuple[float, str]]:
    """(step, words) of each time that the run was resumed."""
    steps = [resumed_at(begin) for begin in run.begins]
    return [(step, f"{name} resumed at step {step}".strip()) for step in steps if step is not None]


def resumed_at(begin: dict[str, object]) -> int | None:
    """The step of the checkpoint that a begin of a run went on from; None for a fresh one."""
    step = str(begin.get("resumed_from") or "").rstrip("/").rpartition("-")[2]
    return int(step) if step.isdigit() else None
