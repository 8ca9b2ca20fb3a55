"""A run, or two side by side, as one HTML page, which needs no other file and no network."""

from collections.abc import Sequence
from typing import Any

from trl_plus.preflight import words as preflight_words
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.page import finding_view, split_view
from trl_plus.preflight.plots import HEIGHT as BARS_HEIGHT
from trl_plus.preflight.plots import WIDTH as BARS_WIDTH
from trl_plus.report import words
from trl_plus.report.curves import HEIGHT, WIDTH
from trl_plus.report.panels import panels_of
from trl_plus.report.run import Run
from trl_plus.ui.pages import render
from trl_plus.ui.printable import clipped

_TEXT = 20_000  # characters shown of a prompt or an answer
_ORDER = {severity.value: severity.rank for severity in Severity}


def run_page(run: Run, against: Run | None = None) -> str:
    """The page. It shows everything without JavaScript."""
    runs = [run] if against is None else [run, against]
    names = _names(runs)
    shown = [
        words.Column(f"{name} {column.title}" if against else column.title, column.metrics, column.rows)
        for name, each in zip(names, runs, strict=True)
        for column in words.columns(each)
    ]
    return render(
        "run.html.j2",
        "run.css",
        names=names,
        runs=[_view(name, each) for name, each in zip(names, runs, strict=True)],
        columns=shown,
        measures=words.measures(shown),
        remarks=words.remarks(shown, runs),
        panels=panels_of(list(zip(names, runs, strict=True))),
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


def _view(name: str, run: Run) -> dict[str, Any]:
    result = run.preflight
    findings = sorted(result.findings, key=lambda found: _ORDER[found.severity.value]) if result else []
    newest = run.begins[-1] if run.begins else {}
    return {
        "name": name,
        "outcome": words.outcome(run),
        "facts": [(title, clipped(value, 300)) for title, value in words.facts(run)],
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
        "commands": words.commands(run),
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
    """The keys of the recipes: for each run (value, origin), None where a recipe does not have it; those that differ
    first."""
    keys = list(dict.fromkeys(entry.key for run in runs for entry in run.recipe))
    rows = []
    for key in keys:
        found = [next((entry for entry in run.recipe if entry.key == key), None) for run in runs]
        values = [None if entry is None else (clipped(entry.value, 500), entry.origin) for entry in found]
        differs = len({entry.value if entry else None for entry in found}) > 1
        rows.append({"key": key, "values": values, "differs": differs})
    return sorted(rows, key=lambda row: not row["differs"])


def _versions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Versions by package, of each run."""
    known = [
        run.summary.get("versions") or (run.begins[-1].get("versions") if run.begins else None) or {} for run in runs
    ]
    names = list(dict.fromkeys(name for versions in known for name in versions))
    rows = [(name, [versions.get(name) or "-" for versions in known]) for name in names]
    return [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in rows]
