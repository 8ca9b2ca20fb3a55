"""The claims of docs/reproductions.md hold: small in every run of the tests, whole with `pytest -m slow`."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture
def figures(monkeypatch):
    """figures(name, small) -> what a script measures."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return lambda name, small: runpy.run_path(str(FOLDER / f"{name}.py"))["figures"](small)


@pytest.mark.parametrize("name", SCRIPTS)
def test_small(name, figures):
    found = figures(name, True)
    assert found
    assert not [figure for figure in found if not figure.holds]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_whole(name, figures):
    assert not [figure for figure in figures(name, False) if not figure.holds]


def test_the_page_has_every_claim():
    text = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert f"    python benchmarks/claims/{name}.py\n" in text
        assert re.search(r'^CLAIM = "(.*)"$', script, re.MULTILINE)[1] in " ".join(text.split()), name


def test_a_figure_that_does_not_hold_fails_the_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])
    common = runpy.run_path(str(FOLDER / "common.py"))
    figure = common["Figure"]
    assert common["main"]("claim", "source", lambda small: [figure("a", "1", "1", True)]) == 0
    assert common["main"]("claim", "source", lambda small: [figure("a", "1", "2", False)]) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out
