"""docs/datasets.md: every line of the table is tested on rows of the dataset's shape (`cases/datasets.json`)."""

import json
import re
from pathlib import Path

import yaml

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "datasets.md"
PLACES = ("dataset_train_split", "dataset_config", "method")


def table():
    """Dataset -> the keys of its line, without those that choose a split, a configuration or the method."""
    found = {}
    for line, names in re.findall(r"^\| (none|`.+`) \| (`.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        keys = {}
        for part in re.findall(r"`([^`]+)`", line):
            keys |= yaml.safe_load(part)
        for name in re.findall(r"`([^`]+/[^`]+)`", names):
            found[name] = {key: value for key, value in keys.items() if key not in PLACES}
    return found


def test_every_line_has_a_case():
    cases = json.loads((HERE / "cases" / "datasets.json").read_text(encoding="utf-8"))
    lines = {case["what"]: case.get("recipe", {}) for case in cases}
    assert table() == {name: {k: v for k, v in keys.items() if k not in PLACES} for name, keys in lines.items()}
