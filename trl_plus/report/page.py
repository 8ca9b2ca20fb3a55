"""Runs as one HTML page, which needs no other file and no network."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trl_plus.evaluation.intervals import ACCURACY, LOSS, MARGIN, wilson_interval
from trl_plus.preflight import words as preflight_words
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.page import finding_view, split_view
from trl_plus.preflight.plots import HEIGHT as BARS_HEIGHT
from trl_plus.preflight.plots import WIDTH as BARS_WIDTH
from trl_plus.recipes.keys import SECRET
from trl_plus.recipes.recipe import RESOLVED as RECIPE
from trl_plus.report.curves import COLOURS, HEIGHT, WIDTH, dashed, panels_of, resumed_at
from trl_plus.report.differences import cautions, effective, held_out_groups
from trl_plus.report.evaluation import Cell
from trl_plus.report.run import Entry, Run
from trl_plus.report.script_data import axes, script_data
from trl_plus.runs import checkpoint_files
from trl_plus.runs.folder import running
from trl_plus.runs.journal import FAILED, FINISHED, STOPPED
from trl_plus.ui.console import clipped, counted
from trl_plus.ui.pages import render

_TITLED = 3  # runs that the title of a page names
_TEXT = 20_000  # characters shown of a prompt or an answer
_ORDER = {severity.value: severity.rank for severity in Severity}


def run_page(*runs: Run, refresh: float | None = None) -> str:
    """The page of one run or more. It shows everything without JavaScript; with it the curves can be changed.

    Args:
        refresh: seconds after which a browser loads the page again; None for a page that stays as it is.
    """
    names = _names(runs)
    named = list(zip(names, runs, strict=True))
    shown = [
        Column(f"{name} {column.title}" if len(runs) > 1 else column.title, column.metrics, column.rows)
        for name, each in named
        for column in columns(each)
    ]
    panels = panels_of(named)
    flat = [plot for plot in panels if plot.flat]
    folded = flat if len(flat) < len(panels) else []
    return render(
        "run.html.j2",
        "run.css",
        "curves.js",
        refresh=refresh,
        names=names,
        title=_title(names),
        runs=[_view(index, name, each) for index, (name, each) in enumerate(named)],
        overview=overview(names, runs),
        columns=shown,
        measures=measures(shown),
        remarks=remarks(shown, runs),
        cautions=cautions(names, runs) if len(runs) > 1 else [],
        numbered=list(enumerate(panels)),
        folded=folded,
        script_data=script_data(named, panels),
        axes=[axis for axis in ("tokens", "seconds") if any(axes(run)[axis] for run in runs)],
        width=WIDTH,
        height=HEIGHT,
        bars_width=BARS_WIDTH,
        bars_height=BARS_HEIGHT,
        samples=_samples(names, runs),
        recipe=_recipe(runs),
        versions=_versions(runs),
        prelude=preflight_words,
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    if len({run.name for run in runs}) == len(runs):
        return [clipped(run.name, 80) for run in runs]
    return [clipped(str(run.folder), 80) for run in runs]


def _title(names: Sequence[str]) -> str:
    more = len(names) - _TITLED
    return " and ".join(names[:_TITLED]) + (f" and {more} more" if more > 0 else "")


def _view(index: int, name: str, run: Run) -> dict[str, Any]:
    result = run.preflight
    findings = sorted(result.findings, key=lambda found: _ORDER[found.severity.value]) if result else []
    newest = run.begins[-1] if run.begins else {}
    return {
        "name": name,
        "colour": index % COLOURS,
        "dashed": dashed(index),
        "outcome": outcome(run),
        "facts": [(title, clipped(value, 300)) for title, value in facts(run)],
        "warnings": [_said(line) for line in run.said if line["event"] == "warning"],
        "notes": [_said(line) for line in run.said if line["event"] == "note"],
        "problems": run.problems,
        "label": run.label,
        "evaluation": run.evaluation,
        "preflight": result,
        "findings": [finding_view(found) for found in findings],
        "splits": [split_view(split, result.max_length) for split in result.splits] if result else [],
        "devices": newest.get("devices") or {},
        "processes": newest.get("processes"),
        "commands": commands(run),
    }


def _said(line: dict[str, Any]) -> tuple[int, str]:
    """(step, sentence); step 0 is before the first one."""
    return int(line.get("step") or 0), clipped(str(line.get("text", "")), preflight_words.PARAGRAPH)


def _samples(names: Sequence[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each prompt with its answers: (title, text), None for one that is not known. Runs that share it share a row, and
    an answer before training that is the same in both is shown once."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in zip(names, runs, strict=True):
        for sample in run.summary.get("generations") or []:
            found.setdefault(str(sample.get("prompt")), {})[name] = sample
    rows = []
    for prompt, samples in found.items():
        before = {sample.get("before") for sample in samples.values()}
        shared = len(runs) == 1 or (len(samples) > 1 and len(before) == 1)
        answers = [("before", _clip(before.pop()))] if shared else []
        for name, sample in samples.items():
            label = f"{name} " if len(runs) > 1 else ""
            answers += [] if shared else [(f"{label}before", _clip(sample.get("before")))]
            answers.append((f"{label}after", _clip(sample.get("after"))))
        rows.append({"prompt": _clip(prompt), "answers": answers})
    return rows


def _clip(text: Any) -> str | None:
    return None if text is None else clipped(str(text), _TEXT)


def _recipe(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The keys of the recipes: for each run (value, origin), None if a recipe does not have it; those that differ
    first."""
    keys = list(dict.fromkeys(entry.key for run in runs for entry in run.recipe))
    rows = []
    for key in keys:
        found = [next((entry for entry in run.recipe if entry.key == key), None) for run in runs]
        values = [_value(key, entry, run) for entry, run in zip(found, runs, strict=True)]
        differs = len({effective(run, key) for run in runs}) > 1
        rows.append({"key": key, "values": values, "differs": differs})
    return sorted(rows, key=lambda row: (not row["differs"], row["key"] == "output_dir"))


def _value(key: str, entry: Entry | None, run: Run) -> tuple[str, str] | None:
    """A value and its origin; of a key that the recipe does not give, the default of its method."""
    if entry is not None:
        return clipped(entry.value, 500), entry.origin
    default = effective(run, key)
    return None if default is None else (clipped(default.strip('"'), 500), "default")


def _versions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Versions by package, of each run."""
    known = [
        run.summary.get("versions") or (run.begins[-1].get("versions") if run.begins else None) or {} for run in runs
    ]
    names = list(dict.fromkeys(name for versions in known for name in versions))
    rows = [(name, [versions.get(name) or "-" for versions in known]) for name in names]
    return [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in rows]


# -- words and figures --------------------------------------------------------------------------------------------

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
    """The end of a run: "clean", "warning" or "error", a sentence, and what to do next."""

    state: str
    sentence: str
    more: str


def outcome(run: Run) -> Outcome:
    """The end of the run according to its journal; without one, according to metrics.json."""
    ending = (run.end or {}).get("outcome")
    step = int(max(line.get("step", 0) for line in (*run.log, run.end or {})))  # the last one that is known
    planned = (run.training or {}).get("steps")
    reached = f"step {step:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
    resume = _resume(run)
    if ending == FINISHED or (not run.begins and run.summary.get("train")):
        return Outcome("clean", "Finished.", _effort(run, step))
    if ending == FAILED:
        return Outcome("error", f"Failed at {reached}: {(run.end or {}).get('error')}", "")
    if ending == STOPPED:
        return Outcome("warning", f"Stopped at {reached}.", resume)
    if running(run.folder):
        return Outcome("info", f"Running: at {reached}.", "")
    if not run.begins:
        return Outcome("warning", f"Not finished, or made by another version: it has reached {reached}.", "")
    return Outcome("warning", f"Not finished: at {reached} it is still running, or was killed.", resume)


def goes_on(run: Run) -> bool:
    """True if more can come: the run trains, or nothing is known about its end and nobody can tell."""
    live = running(run.folder)
    finished = run.end is not None or (not run.begins and bool(run.summary.get("train")))
    return live or (live is None and not finished)


def _resume(run: Run) -> str:
    newest = checkpoint_files.find(run.folder).newest
    if newest is None:
        return "It left no complete checkpoint to resume from."
    return f"`trl-plus train {shlex.quote(str(run.folder / RECIPE))} --resume` continues from {newest.name}."


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
    """The facts at the head of a report: (name, value)."""
    begin = run.begins[0] if run.begins else {}
    rows = run.summary.get("held_out_rows", 0)
    held_out = "a stream" if rows is None else counted(rows, "row") if rows else "none"
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


def measures(shown: Sequence[Column], metrics: Sequence[str] | None = None) -> list[tuple[str, list[Cell]]]:
    """The rows of the table: metrics that at least one column has, each with a cell for every column.

    Args:
        metrics: those to choose from; None for all.
    """
    return [
        (title, [_cell(column, metric) for column in shown])
        for title, metric in _MEASURES
        if any(metric in column.metrics for column in shown) and (metrics is None or metric in metrics)
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
    """Remarks below the table of held-out rows."""
    from trl_plus.methods import METHODS

    found = []
    if any(cell.low is not None for _, cells in measures(shown) for cell in cells):
        found.append(
            "Intervals are Wilson's, 95%, over the held-out rows; they do not cover variation between training seeds."
        )
    methods = [METHODS.get(str(run.summary.get("method"))) for run in runs]
    if any(method is not None and method.reference for method in methods) and any(
        column.title.endswith("before") for column in shown
    ):
        lost = " and no pair counts as won" if any(ACCURACY in column.metrics for column in shown) else ""
        found.append(f"Before training the policy is its own reference: all rewards are 0{lost}.")
    return found


@dataclass(frozen=True)
class Overview:
    """Runs as the rows of a table.

    Attributes:
        titles: of the measures that at least one run has.
        rows: for each run its name, colour, outcome, facts, the letter of its held-out rows, when it was measured, and
            a cell for each title.
    """

    titles: list[str]
    rows: list[dict[str, Any]]


_OVERVIEW = ("Method", "Model", "Data", "Started")


def overview(names: Sequence[str], runs: Sequence[Run], metrics: Sequence[str] | None = None) -> Overview:
    """The last held-out figures of each run; those before training are not final, and not among them.

    Args:
        metrics: those of the table; None for all.
    """
    last = [next((c for c in reversed(columns(run)) if c.title != "before"), Column("", {}, None)) for run in runs]
    figures = measures(last, metrics)
    groups = held_out_groups(runs)
    rows = []
    for index, (name, run, column, group) in enumerate(zip(names, runs, last, groups, strict=True)):
        known = dict(facts(run))
        rows.append(
            {
                "name": name,
                "colour": index % COLOURS,
                "dashed": dashed(index),
                "outcome": outcome(run),
                "step": int(max(line.get("step", 0) for line in (*run.log, run.end or {}))),
                "facts": {title: clipped(known.get(title, "-"), 120) for title in _OVERVIEW},
                "held_out": clipped(known.get("Held out", "-"), 40),
                "group": group,
                "measured": column.title,
                "cells": [cells[index] for _, cells in figures],
            }
        )
    return Overview([title for title, _ in figures], rows)


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
