"""What `trl-plus evaluate --json` prints: one object, described by evaluation.schema.json."""

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from trl_plus.evaluation.run import Evaluation
from trl_plus.evaluation.statistics import CONFIDENCE, DRAWS, SEED
from trl_plus.ui.versions import versions

SCHEMA_VERSION = 1  # rises when a key goes or changes its meaning; keys may be added within a version
_SCHEMA = Path(__file__).with_name("evaluation.schema.json")


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as plain dicts, lists, strings, finite numbers and None. None stands for what is not defined."""
    return {
        "schema_version": SCHEMA_VERSION,
        **_plain(evaluation),
        "intervals": {"confidence": CONFIDENCE, "bootstrap_draws": DRAWS, "bootstrap_seed": SEED},
        "versions": versions(),
    }


def json_text(evaluation: Evaluation) -> str:
    """`as_json` as ASCII text, so that any terminal and any file can hold it."""
    return json.dumps(as_json(evaluation), indent=2, allow_nan=False)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `as_json`."""
    return json.loads(_SCHEMA.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
