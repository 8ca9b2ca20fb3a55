"""Read a run from its files: recipe, metrics, journal, preflight. Computes nothing, imports nothing heavy."""

import json
import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from trl_plus.data.files import as_path
from trl_plus.errors import RecipeError
from trl_plus.preflight.as_json import from_json
from trl_plus.preflight.findings import Result
from trl_plus.recipes.keys import SECRET
from trl_plus.recipes.recipe import RESOLVED as RECIPE
from trl_plus.report.evaluation import Shown, shown_evaluation
from trl_plus.runs.folder import EVALUATION, LOG, PREFLIGHT
from trl_plus.runs.journal import JOURNAL, METRICS

_LINE = re.compile(r"^(?P<key>[A-Za-z_]\w*): (?P<value>.*?)(?:  # (?P<origin>command line|recipe|preset|machine))?$")
Log = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One key of the recipe: its value as YAML, and where it came from."""

    key: str
    value: str
    origin: str


@dataclass
class Run:
    """The content of a run's folder.

    Attributes:
        recipe: in the order of the file, `method` first; values of tokens and the like are hidden.
        label: the file that the recipe was resolved from; "" if it is not known.
        summary: metrics.json, {} if the run has not come so far.
        log: the lines of metrics.jsonl, each with its `step`.
        begins, training, end: events of the journal. `end` belongs to the newest begin; None if the run has
            nothing about its end.
        said: notes and warnings in their order, each once.
        preflight: of a sample of the rows; None if it was left out.
        evaluation: what `trl-plus evaluate` found last; None if it was not run.
        problems: what could not be read, one sentence each.
    """

    folder: Path
    recipe: list[Entry] = field(default_factory=list)
    label: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    log: list[Log] = field(default_factory=list)
    begins: list[Log] = field(default_factory=list)
    training: Log | None = None
    end: Log | None = None
    said: list[Log] = field(default_factory=list)
    preflight: Result | None = None
    evaluation: Shown | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def value(self, key: str) -> str | None:
        """A value of the recipe as YAML; None if the recipe does not give it."""
        return next((entry.value for entry in self.recipe if entry.key == key), None)


def read_run(argument: str) -> Run:
    """Read the folder of a run, finished or not.

    Raises:
        RecipeError: it is no folder of a run.
    """
    folder = as_path(argument)
    if not folder.is_dir():
        raise RecipeError(f"There is no folder {argument}: name the `output_dir` of a run.")
    if not any((folder / name).is_file() for name in (RECIPE, LOG, METRICS)):
        inside = re.fullmatch(r"checkpoint-\d+", folder.resolve().name)
        cure = f"name {folder.resolve().parent}, the run's" if inside else "name the `output_dir` of a run"
        raise RecipeError(f"{argument} holds neither {RECIPE} nor {LOG}: {cure}.")
    run = Run(folder)
    _read_recipe(run)
    run.log = [line for line in _lines(run, LOG) if _is_step(line.get("step"))]
    run.summary = _object(run, METRICS) or {}
    _read_journal(run)
    content = _object(run, PREFLIGHT)
    if content is not None:
        try:
            run.preflight = from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError):
            run.problems.append(f"{PREFLIGHT} is not what `trl-plus preflight --json` prints: it is left out.")
    content = _object(run, EVALUATION)
    if content is not None:
        try:
            run.evaluation = shown_evaluation(content, run)
        except (KeyError, TypeError, ValueError, AttributeError):
            run.problems.append(f"{EVALUATION} is not what `trl-plus evaluate --json` prints: it is left out.")
    return run


def _is_step(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _read_recipe(run: Run) -> None:
    text = _text(run, RECIPE) or ""
    resolved = re.match(r"# Resolved from (.*?)\. Origin of", text)
    run.label = resolved.group(1) if resolved else ""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            value = "(hidden)" if SECRET.search(match["key"]) and match["value"] != "null" else match["value"]
            run.recipe.append(Entry(match["key"], value, match["origin"] or ""))


def _read_journal(run: Run) -> None:
    seen: set[str] = set()
    for line in _lines(run, JOURNAL):
        event = line.get("event")
        if event == "begin":
            run.begins.append(line)
            run.end = None
            notes = [{**line, "event": "note", "text": text} for text in line.get("notes", [])]
        else:
            notes = [line] if event in ("note", "warning") else []
        if event == "end":
            run.end = line
        elif event == "training":
            run.training = line
        for note in notes:
            if note.get("text") not in seen:  # a resumed run repeats most of it
                seen.add(note.get("text", ""))
                run.said.append(note)


def _lines(run: Run, name: str) -> list[Log]:
    """The objects of a JSONL file; lines that are none are counted among the problems."""
    found, damaged = [], 0
    for line in (_text(run, name) or "").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            damaged += bool(line.strip())
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        run.problems.append(f"{lines} of {name} cannot be read and {'is' if damaged == 1 else 'are'} left out.")
    return found


def _object(run: Run, name: str) -> dict[str, Any] | None:
    text = _text(run, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        run.problems.append(f"{name} cannot be read: it is left out.")
        return None
    return value


def _text(run: Run, name: str) -> str | None:
    try:
        return (run.folder / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        run.problems.append(f"{name} cannot be read ({error.strerror}): it is left out.")
        return None
