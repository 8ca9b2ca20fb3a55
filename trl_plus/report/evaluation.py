"""The evaluation that `trl-plus evaluate` left in the folder of a run, as a report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trl_plus.runs.journal import FINISHED
from trl_plus.runs.weights import fingerprint
from trl_plus.ui.console import counted

_MODELS = ("base", "tuned")
_MEASURES = (("reward", "by reward"), ("logp_per_token", "by log-probability per token"))
_KINDS = (("better", "better sides"), ("worse", "worse sides"))


@dataclass(frozen=True)
class Cell:
    """One figure: its text, and of a share also value and interval, from 0 to 1."""

    text: str
    interval: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


NONE = Cell("-")


@dataclass(frozen=True)
class Shown:
    """An evaluation's tables.

    Attributes:
        data: what it was made on, one sentence.
        stale: why it is not about the model in the folder, one sentence; "" if it is.
        measures: (title, cell of the base, cell of the tuned model).
        groups: by length and by source: (name, pairs, cell of the base, cell of the tuned model).
        notes: sentences below the tables.
    """

    data: str
    stale: str
    measures: list[tuple[str, list[Cell]]]
    groups: list[tuple[str, int, list[Cell]]]
    notes: list[str]


def shown_evaluation(content: Mapping[str, Any], run: Any) -> Shown:
    """The tables of `evaluation.json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not what `trl-plus evaluate --json` prints.
    """
    pairs = content["pairs"]
    of_pairs = f", {counted(pairs['pairs'], 'pair')}" if pairs else ""
    dataset = str(content["dataset"])
    named = run.value("dataset_name") if dataset == run.summary.get("dataset") else None  # as the recipe names it
    name = named or (Path(dataset).name if Path(dataset).is_absolute() else dataset)  # a page may go to others
    data = f"{counted(content['rows'], 'held-out row')} of {name}{of_pairs}; 95% intervals."
    if content["dropped"]:
        data += f" {counted(content['dropped'], 'row')} did not fit into max_length."
    return Shown(
        data=data,
        stale=_staleness(content, run),
        measures=[row for row in _measures(content) if any(cell != NONE for cell in row[1])],
        groups=_groups(content),
        notes=[str(note) for note in content["notes"]],
    )


def _staleness(content: Mapping[str, Any], run: Any) -> str:
    """The reason why an evaluation is not about the weights in the folder; empty if it is."""
    of = content.get("weights") or {}
    known, step = of.get("fingerprint"), of.get("step")
    if known is None:
        return "It does not record which weights it judged."
    again = "Evaluate the run again."
    if known != fingerprint(run.folder):
        which = "other weights than those in the folder" if step is None else f"the weights of step {step:,}"
        return f"It judged {which}, and the folder holds others now. {again}"
    began = max((_moment(begin.get("time")) for begin in run.begins), default=0.0)
    if began > _moment(content.get("time")) and (run.end or {}).get("outcome") != FINISHED:
        return f"The run was started or resumed after it, and has not put its new weights into the folder. {again}"
    return ""


def _moment(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0


def _measures(content: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    pairs, labels, ratios = content["pairs"], content["labels"], content["divergence"]
    lengths = content["lengths"] or {}
    shortcut = content.get("shortcut") or {}  # earlier versions have none
    rows: list[tuple[str, list[Cell]]] = [
        ("Accuracy of surface features alone, without a model", [_share(shortcut.get("accuracy"))] * len(_MODELS)),
        ("AUC of surface features alone, without a model", [_share(shortcut.get("auc"))] * len(_MODELS)),
    ]
    for measure, words in _MEASURES:
        if pairs:
            found = [(pairs["models"].get(model) or {}).get(measure) or {} for model in _MODELS]
            balanced = [((lengths.get("balanced") or {}).get(model) or {}).get(measure) for model in _MODELS]
            rows += [
                (f"Accuracy {words}", [_share(one.get("accuracy")) for one in found]),
                (f"Margin {words}", [_number(one.get("margin")) for one in found]),
                (f"Change of margin {words}", [NONE, _number(pairs["change"].get(measure))]),
                (f"Accuracy {words}, lengths balanced", [_share(value and {"value": value}) for value in balanced]),
            ]
        if labels:
            areas = [(labels["auc"].get(model) or {}).get(measure) for model in _MODELS]
            rows.append((f"AUC of the labels {words}", [_share(area) for area in areas]))
    rows += [
        (f"Log-ratio to the base per token, {words}", [NONE, _number((ratios or {}).get(kind))])
        for kind, words in _KINDS
    ]
    return rows


def _groups(content: Mapping[str, Any]) -> list[tuple[str, int, list[Cell]]]:
    """Accuracy by log-probability per token, which every model has."""
    buckets = (content["lengths"] or {}).get("buckets") or []
    named = [(f"length difference {group['name']}", group) for group in buckets]
    shortcut = content.get("shortcut") or {}
    for name, words in (("right", "surface features alone are right"), ("wrong", "surface features alone are wrong")):
        named += [(words, shortcut[name])] if shortcut.get(name) else []
    named += [(f"source {group['name']}", group) for group in content["sources"]]
    return [
        (
            name,
            int(group["pairs"]),
            [
                _share(((group["models"].get(model) or {}).get("logp_per_token") or {}).get("accuracy"))
                for model in _MODELS
            ],
        )
        for name, group in named
    ]


def _share(estimate: Mapping[str, Any] | None) -> Cell:
    value, low, high = _ends(estimate)
    if value is None:
        return NONE
    if low is None or high is None:
        return Cell(f"{value:.3f}", value=value)
    return Cell(f"{value:.3f}", f"{low:.3f} to {high:.3f}", value, low, high)


def _number(estimate: Mapping[str, Any] | None) -> Cell:
    value, low, high = _ends(estimate)
    if value is None:
        return NONE
    return Cell(f"{value:+.4f}", "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}")


def _ends(estimate: Mapping[str, Any] | None) -> Sequence[float | None]:
    if not estimate:
        return None, None, None
    ends = (estimate.get(name) for name in ("value", "low", "high"))
    return [None if end is None else float(end) for end in ends]
