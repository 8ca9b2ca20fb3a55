"""An evaluation in the terminal, as JSON, and in the folder of the weights that it judged."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trl_plus.evaluation.intervals import Estimate
from trl_plus.evaluation.measures import FEWEST, PER_TOKEN, REWARD, TRAIN, ByLabel, ByLength, ByShortcut, Group
from trl_plus.evaluation.run import Evaluation
from trl_plus.evaluation.statistics import CONFIDENCE, DRAWS, SEED
from trl_plus.runs.checkpoint_files import step_of
from trl_plus.runs.folder import EVALUATION
from trl_plus.ui.console import printable, say
from trl_plus.ui.environment import versions


def show_evaluation(evaluation: Evaluation, as_json: bool, folder: Path | None = None) -> None:
    """Print an evaluation, as tables or as JSON and nothing else.

    Args:
        folder: keep it here, in `evaluation.json`, for `trl-plus report`; the one before it goes.
    """
    if as_json:
        print(json_text(evaluation))
    else:
        for part in evaluation_report(evaluation):
            say(part)
    if folder is not None:
        _keep(evaluation, folder, quiet=as_json)


def _keep(evaluation: Evaluation, folder: Path, quiet: bool) -> None:
    """If the folder cannot be written, only the file is missing: the figures are printed already."""
    part = folder / f".{EVALUATION}.part"
    try:
        part.write_text(json_text(evaluation) + "\n", encoding="utf-8")
        part.replace(folder / EVALUATION)
    except OSError as error:
        print(
            f"{folder / EVALUATION} could not be written ({error.strerror}): the report will not show it.",
            file=sys.stderr,
        )
        return
    if not quiet:
        shown = "" if step_of(folder.absolute()) >= 0 else "; `trl-plus report` shows it"
        say(f"Kept in {folder / EVALUATION}{shown}.")


# -- JSON ---------------------------------------------------------------------------------------------------------

SCHEMA_VERSION = 1  # rises when a key goes or changes its meaning; keys may be added within a version
_FIGURES = TypeAdapter(Evaluation)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as plain dicts, lists, strings, finite numbers and None. None stands for what is not defined."""
    return {
        "schema_version": SCHEMA_VERSION,
        **_FIGURES.dump_python(evaluation, mode="json"),
        "intervals": {"confidence": CONFIDENCE, "bootstrap_draws": DRAWS, "bootstrap_seed": SEED},
        "versions": versions(),
    }


def json_text(evaluation: Evaluation) -> str:
    """`as_json` as ASCII text, so that any terminal and any file can hold it."""
    return json.dumps(as_json(evaluation), indent=2, allow_nan=False)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `as_json`."""
    found = _FIGURES.json_schema(mode="serialization")
    more: dict[str, Any] = {
        "schema_version": {
            "const": SCHEMA_VERSION,
            "description": "Rises when a key goes or changes its meaning. Keys may be added within a version.",
        },
        "intervals": {
            "type": "object",
            "description": "How the intervals were made.",
            "properties": {
                "confidence": {"const": CONFIDENCE, "description": "Of every interval."},
                "bootstrap_draws": {"type": "integer", "description": "Draws of whole prompts."},
                "bootstrap_seed": {"type": "integer", "description": "The same seed gives the same intervals."},
            },
            "required": ["confidence", "bootstrap_draws", "bootstrap_seed"],
        },
        "versions": {
            "type": "object",
            "additionalProperties": {"type": ["string", "null"]},
            "description": "Versions of Python and of the libraries; null if one is not installed.",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "trl-plus evaluate --json",
        "properties": {**found["properties"], **more},
        "required": [*found["required"], *more],
    }


# -- tables -------------------------------------------------------------------------------------------------------

_TITLES = {REWARD: "By the method's reward", PER_TOKEN: "By log-probability per token (nats)"}
_SHORT = {REWARD: "reward", PER_TOKEN: "per token"}
_KINDS = {"better": "better sides", "worse": "worse sides", "all": "all completions"}
_NOT_A_KL = "These are the dataset's completions and not samples of the tuned model, so this is not a KL divergence."
_LENGTH = (
    "balanced: mean accuracy of pairs whose better side is longer and of pairs whose better side is shorter. length ρ: "
    "Spearman's correlation of margin and length difference."
)


def evaluation_report(evaluation: Evaluation) -> Iterator[Any]:
    """The sentences and tables to print, in order."""
    tuned = "" if evaluation.tuned is None else f"; tuned: {evaluation.tuned}"
    yield f"{evaluation.method} on {evaluation.dataset}; base: {evaluation.base}{tuned}"
    pairs = "" if evaluation.pairs is None else f", {evaluation.pairs.pairs:,} pairs"
    yield f"{evaluation.rows:,} held-out rows{pairs}; brackets are 95% intervals."
    yield from evaluation.notes
    for measure in (REWARD, PER_TOKEN):
        if evaluation.pairs is not None and _known(evaluation.pairs, measure):
            yield _comparison(evaluation, evaluation.pairs, measure)
    if evaluation.labels is not None:
        yield _labels(evaluation.labels)
    if evaluation.lengths is not None:
        yield _groups("Accuracy by length difference (tokens, better minus worse)", evaluation.lengths.buckets)
        yield f"Preferring the longer side would win {evaluation.lengths.longer_wins:.3f} of all pairs; {_LENGTH}"
    if evaluation.shortcut is not None:
        yield from _shortcut(evaluation.shortcut)
    if evaluation.sources:
        yield _groups(f"Accuracy by source (`{evaluation.source_column}`)", evaluation.sources)
    if evaluation.divergence is not None:
        yield _divergence(evaluation.divergence)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=Text(f"\n{printable(title)}"), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.pad_edge = False
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    return table


def _known(group: Group, measure: str) -> bool:
    return any(by_measure[measure] is not None for by_measure in group.models.values())


def _comparison(evaluation: Evaluation, pairs: Group, measure: str) -> Table:
    """Base against tuned by one measure."""
    table = _table(_TITLES[measure], ["", "accuracy", "mean margin", "balanced", "length ρ"])
    lengths = evaluation.lengths
    for model, by_measure in pairs.models.items():
        cell = by_measure[measure]
        if cell is None:
            table.add_row(model, "-", "-", "-", "-")
            continue
        balanced = lengths.balanced[model][measure] if lengths is not None and _has_both(lengths) else None
        correlation = None if lengths is None else lengths.correlation[model][measure]
        shown = "-" if balanced is None else f"{balanced:.3f}"
        ranks = None if correlation is None else Estimate(correlation.value)  # its interval would not fit
        row = (estimate_text(cell.accuracy, 3), estimate_text(cell.margin, 3, "+"), shown, estimate_text(ranks, 2, "+"))
        table.add_row(model, *row)
    change = pairs.change.get(measure)
    if change is not None:
        table.add_row("change", "", estimate_text(change, 3, "+"), "", "")
    if evaluation.reference and measure == REWARD:
        table.caption = "The reward is a log-ratio to the base, so the base itself has none."
    return table


def _has_both(lengths: ByLength) -> bool:
    """True if each side of zero has enough pairs for a mean of two accuracies."""
    return all(group and group.pairs >= FEWEST for group in (lengths.better_longer, lengths.better_shorter))


def _labels(labels: ByLabel) -> Table:
    models = list(labels.auc)
    table = _table("Single rows by label", ["", "rows", *models])
    for measure in (REWARD, PER_TOKEN):
        for label in ("desirable", "undesirable"):
            values = (getattr(labels, label)[model][measure] for model in models)
            table.add_row(
                f"{label}, {_SHORT[measure]}", f"{labels.rows[label]:,}", *(estimate_text(v, 3, "+") for v in values)
            )
        areas = (labels.auc[model][measure] for model in models)
        table.add_row(
            f"AUC, {_SHORT[measure]}", f"{sum(labels.rows.values()):,}", *(estimate_text(area, 3) for area in areas)
        )
    table.caption = "AUC: the chance that a desirable row scores above an undesirable one."
    return table


def _groups(title: str, groups: list[Group]) -> Table:
    """Accuracies of each group: by reward if every model has one, else also by log-probability per token."""
    models = groups[0].models
    everywhere = all(by_measure[REWARD] is not None for by_measure in models.values())
    columns = [
        (model, measure)
        for measure in ((REWARD,) if everywhere else (PER_TOKEN, REWARD))
        for model in models
        if models[model][measure] is not None
    ]
    table = _table(title, ["", "pairs", *(f"{model}, {_SHORT[measure]}" for model, measure in columns)])
    for group in groups:
        cells = (group.models[model][measure] for model, measure in columns)
        shown = ("-" if cell is None else estimate_text(cell.accuracy, 2) for cell in cells)
        table.add_row(Text(printable(group.name)), f"{group.pairs:,}", *shown)
    return table


def _shortcut(found: ByShortcut) -> Iterator[Any]:
    """The result of surface features alone, and accuracies on the pairs that they judge right and wrong."""
    groups = [group for group in (found.right, found.wrong) if group is not None]
    if groups:
        yield _groups("Accuracy by what surface features alone say", groups)
    yield shortcut_sentence(found)


def shortcut_sentence(found: ByShortcut) -> str:
    """The result of surface features alone, and the rows that they were fitted on."""
    which = "the training rows" if found.fitted_on == TRAIN else "the other held-out rows (cross-fitted)"
    reached = [
        f"would win {estimate_text(found.accuracy, 3)} of all pairs" if found.accuracy is not None else "",
        f"would reach an AUC of {estimate_text(found.auc, 3)}" if found.auc is not None else "",
    ]
    return f"Surface features alone, fitted on {found.rows:,} of {which}, {' and '.join(filter(None, reached))}."


def _divergence(found: dict[str, Estimate | None]) -> Table:
    table = _table("Log-ratio of tuned to base, nats per token", ["", "mean"])
    for kind, estimate in found.items():
        table.add_row(_KINDS[kind], estimate_text(estimate, 4, "+"))
    table.caption = _NOT_A_KL
    return table


def estimate_text(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """ "0.931 [0.881, 0.961]", without an interval if there is none; "-" if the value is not defined."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    shown = f"{estimate.value:{sign}.{digits}f}"
    if math.isnan(estimate.low):
        return shown
    return f"{shown} [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
