"""A run in words and figures: how it ended, what was measured, how to run it again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trl_plus.evaluation.intervals import wilson_interval
from trl_plus.evaluation.shown import Cell
from trl_plus.recipes.recipe import RESOLVED as RECIPE
from trl_plus.report.panels import resumed_at
from trl_plus.report.run import SECRET, Run
from trl_plus.runs import checkpoint_files
from trl_plus.runs.journal import FAILED, FINISHED, STOPPED
from trl_plus.training.held_out_table import ACCURACY, LOSS, MARGIN

_MEASURES = (
    ("Reward accuracy", ACCURACY),
    ("Reward margin", MARGIN),
    ("Reward of chosen rows", "eval_rewards/chosen"),
    ("Reward of rejected rows", "eval_rewards/rejected"),
    ("Reference point z_ref", "eval_z_ref"),
    ("Log odds ratio", "eval_log_odds_ratio"),
    ("Loss", LOSS),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "clean", "warning" or "error", a sentence, and what follows from it."""

    state: str
    sentence: str
    more: str


def last_step(run: Run) -> int:
    """The last step that the run is known to have reached."""
    return int(max(line.get("step", 0) for line in (*run.log, run.end or {})))


def outcome(run: Run) -> Outcome:
    """How the run ended, as its journal says it; of a run without one, as metrics.json does."""
    ending, step = (run.end or {}).get("outcome"), last_step(run)
    planned = (run.training or {}).get("steps")
    reached = f"step {step:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    resume = _resume(run)
    if ending == FINISHED or (not run.begins and run.summary.get("train")):
        return Outcome("clean", "Finished.", _effort(run, step))
    if ending == FAILED:
        return Outcome("error", f"Failed at {reached}: {(run.end or {}).get('error')}", "")
    if ending == STOPPED:
        return Outcome("warning", f"Stopped at {reached}.", resume)
    if not run.begins:
        return Outcome("warning", f"Not finished, or not by this version: it has reached {reached}.", "")
    return Outcome("warning", f"Not finished: at {reached} it still runs, or was killed.", resume)


def _resume(run: Run) -> str:
    newest = checkpoint_files.find(run.folder).newest
    if newest is None:
        return "It left no complete checkpoint to go on from."
    return f"`trl-plus train {shlex.quote(str(run.folder / RECIPE))} --resume` goes on from {newest.name}."


def _effort(run: Run, step: int) -> str:
    train = run.summary.get("train") or {}
    parts = [f"{step:,} optimizer {'step' if step == 1 else 'steps'}"]
    if "epoch" in train:
        parts.append(f"{train['epoch']:.3g} {'epoch' if train['epoch'] == 1 else 'epochs'}")
    resumed = [at for at in map(resumed_at, run.begins) if at is not None]
    text = ", ".join(parts)
    if "train_runtime" in train:
        text += f", {duration(train['train_runtime'])}{' since it was resumed' if resumed else ''}"
    return text + "." + "".join(f" Resumed at step {at:,}." for at in resumed)


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    minutes, hours = divmod(whole, 60), divmod(whole, 3600)
    return f"{minutes[0]} min {minutes[1]} s" if whole < 3600 else f"{hours[0]} h {hours[1] // 60} min"


def facts(run: Run) -> list[tuple[str, str]]:
    """What the head of a report says: (name, value)."""
    begin = run.begins[0] if run.begins else {}
    rows = run.summary.get("held_out_rows", 0)
    held_out = "a stream" if rows is None else f"{rows:,} rows" if rows else "none"
    found = [
        ("Method", run.summary.get("method") or run.value("method")),
        ("Model", run.value("model_name_or_path") or run.summary.get("model")),
        ("Data", run.value("dataset_name") or run.summary.get("dataset")),
        ("Held out", held_out if run.summary else None),
        ("Rows per step", rows_per_step(run)),
        ("Started", moment(begin.get("time"))),
    ]
    return [(name, str(value)) for name, value in found if value]


def moment(text: Any) -> str | None:
    """A time of the journal, to the minute."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return None


def rows_per_step(run: Run) -> str | None:
    """The effective batch, and how it is cut; None without a recipe."""
    from trl_plus.methods import METHODS
    from trl_plus.recipes.keys import keys_of

    method = METHODS.get(run.value("method") or "")
    if method is None:
        return None
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    given = [run.value(name) or str(keys_of(method)[name].default) for name in names]
    if not all(value.isdigit() for value in given):
        return None
    device, accumulation = map(int, given)
    processes = int((run.begins[-1] if run.begins else {}).get("processes", 1))
    cut = f" = {device} × {accumulation} × {processes}" if accumulation * processes > 1 else ""
    return f"{device * accumulation * processes}{cut}"


# -- held-out rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """Held-out metrics at one moment of a run."""

    title: str
    metrics: Mapping[str, Any]
    rows: int | None


def columns(run: Run) -> list[Column]:
    """Held-out metrics before and after training; of a run that was cut short, its last evaluation."""
    rows = run.summary.get("held_out_rows", 0)
    before, after = run.summary.get("before"), run.summary.get("after")
    found = [Column("before", before, rows)] if before else []
    if after:
        found.append(Column("after", after, rows))
    else:
        last = next((line for line in reversed(run.log) if LOSS in line and (line["step"] or not before)), None)
        found += [Column(f"at step {last['step']}", last, rows)] if last else []
    return found


def measures(shown: Sequence[Column]) -> list[tuple[str, list[Cell]]]:
    """The rows of the table: metrics that at least one column has, each with a cell for every column."""
    return [
        (title, [_cell(column, metric) for column in shown])
        for title, metric in _MEASURES
        if any(metric in column.metrics for column in shown)
    ]


def _cell(column: Column, metric: str) -> Cell:
    value = column.metrics.get(metric)
    if not isinstance(value, int | float):
        return Cell("-")
    if metric != ACCURACY:
        return Cell(f"{value:.4f}")
    if not column.rows:
        return Cell(f"{value:.3f}", value=value)
    low, high = wilson_interval(value, column.rows)
    return Cell(f"{value:.3f}", f"{low:.3f} to {high:.3f}", value, low, high)


def remarks(shown: Sequence[Column], runs: Sequence[Run]) -> list[str]:
    """What a reader of the held-out table must know."""
    from trl_plus.methods import METHODS

    found = []
    if any(cell.low is not None for _, cells in measures(shown) for cell in cells):
        found.append("Intervals are Wilson's, 95%, over the held-out rows; they leave out the luck of the training.")
    methods = [METHODS.get(str(run.summary.get("method"))) for run in runs]
    if any(method is not None and method.reference for method in methods) and any(
        column.title.endswith("before") for column in shown
    ):
        lost = " and no pair counts as won" if any(ACCURACY in column.metrics for column in shown) else ""
        found.append(f"Before training the policy is its own reference: all rewards are 0{lost}.")
    if len({(run.summary.get("dataset"), run.summary.get("held_out_rows")) for run in runs}) > 1:
        found.append("The two runs have different held-out rows: their figures do not compare.")
    if len({run.summary.get("method") for run in runs}) > 1:
        found.append("Rewards and losses of different methods have different units: only accuracies compare.")
    return found


# -- again --------------------------------------------------------------------------------------------------------


def commands(run: Run) -> list[tuple[str, str]]:
    """(what it is, command): how the run was started, and how the same run is made again."""
    begin, newest = (run.begins[0], run.begins[-1]) if run.begins else ({}, {})
    found = []
    if begin.get("command"):
        found.append((f"Started in {begin.get('folder')}", _hidden(str(begin["command"]))))
    for resumed in run.begins[1:]:
        if resumed.get("command"):
            found.append((f"Resumed {moment(resumed.get('time'))}", _hidden(str(resumed["command"]))))
    if run.recipe:
        words = ["trl-plus", "train", str(run.folder.resolve() / RECIPE), "output_dir=runs/again"]
        processes = int(newest.get("processes", 1))
        words += ["--num-processes", str(processes)] if processes > 1 else []
        found.append(("The same run again", shlex.join(words)))
    return found


def _hidden(command: str) -> str:
    """A command with the values of tokens and the like left out."""
    words, hide = [], False
    for word in shlex.split(command):
        name, equals, _ = word.partition("=")
        secret = bool(SECRET.search(name.lower())) and (equals != "" or word.startswith("--"))
        words.append("(hidden)" if hide else f"{name}=(hidden)" if secret and equals else word)
        hide = secret and not equals
    return shlex.join(words)
