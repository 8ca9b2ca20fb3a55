"""The object that `trl-plus preflight --json` prints, described by preflight.schema.json."""

import json
import math
from pathlib import Path
from typing import Any

from trl_plus.evaluation.intervals import Estimate
from trl_plus.preflight.findings import (
    Example,
    Finding,
    Lengths,
    Preview,
    Result,
    Severity,
    Shortcut,
    Split,
    Token,
    Trait,
)

SCHEMA_VERSION = 1  # rises when a key goes or changes its meaning; keys may be added within a version
_SCHEMA = Path(__file__).with_name("preflight.schema.json")


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain dicts, lists, strings, finite numbers, booleans and None. Texts are whole and unchanged."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": result.source,
        "method": result.method,
        "model": result.model,
        "format": result.format,
        "max_length": _integer(result.max_length),
        "counts": {severity.value: result.count(severity) for severity in Severity},
        "fails": result.fails(),
        "fails_strict": result.fails(strict=True),
        "splits": [_split(split) for split in result.splits],
        "findings": [finding.as_dict() for finding in result.findings],
        "previews": [_preview(preview) for preview in result.previews],
        "notes": list(result.notes),
        "seconds": _finite(result.seconds),
    }


def json_text(result: Result) -> str:
    """`as_json` as ASCII text, so that any terminal and any file can hold it."""
    return json.dumps(as_json(result), indent=2, allow_nan=False, default=_plain)


def from_json(content: dict[str, Any]) -> Result:
    """The result that `as_json` was given.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is another kind of object, or of another version.
    """
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {content['schema_version']}, not {SCHEMA_VERSION}")
    whole = {name: content[name] for name in ("source", "method", "model", "format", "max_length", "notes")}
    return Result(
        **whole,
        splits=[_split_from(split) for split in content["splits"]],
        findings=[_finding_from(finding) for finding in content["findings"]],
        previews=[_preview_from(preview) for preview in content["previews"]],
        seconds=_number(content["seconds"]),
    )


def _split_from(split: dict[str, Any]) -> Split:
    lengths = [Lengths(**{**part, "mean": _number(part["mean"])}) for part in split["lengths"]]
    for part in lengths:
        part.quantiles.update({key: _number(value) for key, value in part.quantiles.items()})
    differences = [(chosen, rejected) for chosen, rejected in split["differences"]]
    shortcut = _shortcut_from(split.get("shortcut"))
    return Split(**{**split, "lengths": lengths, "differences": differences, "shortcut": shortcut})


def _shortcut_from(content: dict[str, Any] | None) -> Shortcut | None:
    """The shortcut that `_shortcut` was given, without its examples, which the finding holds."""
    if content is None:
        return None
    shares = {name: Estimate(*map(_number, content[name].values())) for name in _SHARES}
    scores = {name: tuple(content["scores"][name]) for name in ("edges", "counts")}
    numbers = {name: content[name] for name in ("rows", "prompts", "wrong", "paired")}
    return Shortcut(
        **numbers, **shares, **scores, traits=tuple(Trait(**one) for one in content["features"]), examples=()
    )


def _finding_from(finding: dict[str, Any]) -> Finding:
    examples = tuple(Example(example["row"], example["detail"]) for example in finding["examples"])
    values = {name: value for name, value in finding.items() if name != "share"}
    return Finding(**{**values, "severity": Severity(finding["severity"]), "examples": examples})


def _preview_from(preview: dict[str, Any]) -> Preview:
    sides = {side: [Token(**token) for token in tokens] for side, tokens in preview["sides"].items()}
    return Preview(**{**preview, "sides": sides})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `as_json`."""
    return json.loads(_SCHEMA.read_text(encoding="utf-8"))


def _split(split: Split) -> dict[str, Any]:
    return {
        "name": split.name,
        "rows": _integer(split.rows),
        "checked": int(split.checked),
        "dropped": int(split.dropped),
        "cut": {side: int(count) for side, count in split.cut.items()},
        "labels": None if split.labels is None else {label: int(count) for label, count in split.labels.items()},
        "lengths": [_lengths(lengths) for lengths in split.lengths],
        "differences": [[int(chosen), int(rejected)] for chosen, rejected in split.differences],
        "shortcut": None if split.shortcut is None else _shortcut(split.shortcut),
    }


_SHARES = ("accuracy", "length", "other")


def _shortcut(found: Shortcut) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "prompts": found.prompts,
        "paired": found.paired,
        **{name: {key: _finite(value) for key, value in vars(getattr(found, name)).items()} for name in _SHARES},
        "wrong": found.wrong,
        "features": [
            {"name": trait.name, "words": trait.words, "weight": _finite(trait.weight), "alone": _finite(trait.alone)}
            for trait in found.traits
        ],
        "scores": {"edges": list(map(_finite, found.edges)), "counts": list(found.counts)},
    }


def _lengths(lengths: Lengths) -> dict[str, Any]:
    return {
        "part": lengths.part,
        "edges": [_finite(edge) for edge in lengths.edges],
        "counts": [int(count) for count in lengths.counts],
        "quantiles": {key: _finite(value) for key, value in lengths.quantiles.items()},
        "mean": _finite(lengths.mean),
    }


def _preview(preview: Preview) -> dict[str, Any]:
    return {
        "row": int(preview.row),
        "split": preview.split,
        "label": None if preview.label is None else bool(preview.label),
        "dropped": preview.dropped,
        "sides": {
            side: [{"text": t.text, "loss": t.loss, "special": t.special, "cut": t.cut} for t in tokens]
            for side, tokens in preview.sides.items()
        },
    }


def _integer(value: int | None) -> int | None:
    return None if value is None else int(value)


def _finite(value: float) -> float | int | None:
    """A number that JSON can hold: None for one that is not finite (the mean of no rows)."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def _plain(value: Any) -> Any:
    """A number of numpy's, in a finding, as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON: give a str, int, float or bool.")
