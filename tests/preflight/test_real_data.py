"""On real data preflight finds what docs/preflight-real-data.md lists, which was read row by row, and nothing else.

TRL_PLUS_REAL_DATA=../shared/data TRL_PLUS_REAL_MODEL=/path/to/SmolLM2-135M-Instruct pytest -m real
"""

import os
import re
from pathlib import Path

import pytest

from tests.preflight.corpus import FORMS
from tests.preflight.looks import EVERYTHING, counts, first_rows, look_at
from tests.preflight.toys import open_toy
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.run import preflight

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TRL_PLUS_REAL_DATA", ROOT.parent / "shared" / "data"))
MODEL = os.environ.get("TRL_PLUS_REAL_MODEL")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data: TRL_PLUS_REAL_DATA or {DATA}"),
]

TEXT = {
    "llmbar": {"D205": 1, "D510": 0, "D520": 0},
    "demo_pairs_en": {"D301": 1, "D302": 3, "D601": 5},
    "demo_unpaired_en": {"D212": 2, "D301": 2, "D302": 1},
    "hh_shape": {},
}
TOKENS = {
    "llmbar": {"D406": 0},
    "demo_pairs_en": {"D406": 0, "D501": 43, "D503": 56, "D504": 19},
    "demo_unpaired_en": {"D406": 0, "D501": 27, "D503": 34},
    "hh_shape": {"D406": 0},
}
ROWS = {
    ("llmbar", "D205"): [367],
    ("llmbar", "D520"): [166, 22, 320],
    ("demo_pairs_en", "D301"): [15],
    ("demo_pairs_en", "D302"): [15, 67, 286],
    ("demo_pairs_en", "D601"): [157, 186, 230],
    ("demo_unpaired_en", "D212"): [139, 257],
    ("demo_unpaired_en", "D301"): [245, 259],
    ("demo_unpaired_en", "D302"): [259],
}


def form_of(name):
    return FORMS["kto-chat" if "unpaired" in name else "chat"]


@pytest.mark.parametrize("name", TEXT)
def test_findings_in_the_text(name):
    result = look_at(str(DATA / f"{name}.jsonl"), form_of(name))
    assert counts(result) == TEXT[name]
    assert not [finding for finding in result.findings if finding.severity is Severity.ERROR]
    for code, rows in first_rows(result).items():
        assert rows == ROWS.get((name, code), [])


@pytest.mark.skipif(MODEL is None, reason="no real model: TRL_PLUS_REAL_MODEL names no folder")
@pytest.mark.parametrize("name", TEXT)
def test_findings_in_the_tokens(name):
    source = open_toy(MODEL, str(DATA / f"{name}.jsonl"), form_of(name).method, max_length=1024)
    result = preflight(source, EVERYTHING)
    assert counts(result) == TEXT[name] | TOKENS[name]
    assert not [finding for finding in result.findings if finding.severity is Severity.ERROR]


def test_the_list_in_the_documentation_is_complete():
    listed = re.findall(
        r"^\| (\w+) \| (D\d+) \| (\d+|whole) \|", (ROOT / "docs" / "preflight-real-data.md").read_text(), re.M
    )
    found = {
        (name, code, str(count or "whole")) for name in TEXT for code, count in (TEXT[name] | TOKENS[name]).items()
    }
    each = {(one, code, count) for name, code, count in listed for one in (TEXT if name == "all" else [name])}
    assert each == found
