"""The verdicts of docs/reproductions.md stand: small in every run of the tests, whole with `pytest -m slow`."""

import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "claims"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef figures(" in path.read_text(encoding="utf-8"))
CLONED = ["authors_code", "rlhf_book"]  # read clones of other people's repositories
SLOW = ["signs_kto", "signs_noise", "signs_orpo"]  # the same helpers as the other signs, ten seconds each
CLONES = [Path(word) for word in os.environ.get("TRL_PLUS_CLONES", "").split(os.pathsep) if word]


@pytest.fixture
def figures(monkeypatch):
    """figures(name, small) -> what a script measures."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return lambda name, small: runpy.run_path(str(FOLDER / f"{name}.py"))["figures"](small)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SCRIPTS if name not in CLONED],
)
def test_small(name, figures):
    found = figures(name, True)
    assert found
    # A few steps contradict no claim that holds; of one that is not reproduced they show nothing
    assert "not reproduced" in verdict(name) or not [figure for figure in found if not figure.holds]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SCRIPTS} - {*CLONED}))
def test_whole(name, figures):
    """A claim that is not reproduced keeps its verdict as well: the page would be wrong otherwise."""
    assert all(figure.holds for figure in figures(name, False)) == ("not reproduced" not in verdict(name))


@pytest.mark.slow
@pytest.mark.skipif(not CLONES, reason="needs clones of the authors' repositories (TRL_PLUS_CLONES)")
def test_whole_with_clones(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in CLONED:
        clones = [clone for clone in CLONES if (clone / "code").is_dir() == (name == "rlhf_book")]
        found = runpy.run_path(str(FOLDER / f"{name}.py"))["figures"](False, clones=clones)
        assert not [figure for figure in found if not figure.holds]


@pytest.mark.parametrize("name", CLONED)
def test_without_a_clone_a_script_is_skipped_in_words(name, figures, capsys):
    assert figures(name, True) == []
    assert "Skipped: name" in capsys.readouterr().out


def test_a_folder_that_is_no_clone_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in CLONED:
        with pytest.raises(SystemExit, match="Fix: name the top folder of a clone"):
            runpy.run_path(str(FOLDER / f"{name}.py"))["figures"](True, clones=[tmp_path])


def test_functions_are_read_from_a_file_whose_imports_fail(tmp_path):
    file = tmp_path / "trainer.py"
    file.write_text(
        "import not_installed\n"
        "class Trainer(not_installed.Base):\n"
        "    @not_installed.wrapped\n"
        "    def loss(self, x: not_installed.Tensor):\n"
        "        return self.beta * half(x)\n"
        "def half(x):\n"
        "    return x / 2\n"
    )
    definitions = runpy.run_path(str(FOLDER / "clones.py"))["definitions"]
    found = definitions(file, ["Trainer.loss", "half"], {})
    assert found["loss"](SimpleNamespace(beta=3.0), 4.0) == 6.0
    with pytest.raises(SystemExit, match=r"trainer.py has no Trainer.other. Fix: use a commit"):
        definitions(file, ["Trainer.other"], {})


def verdict(name):
    """The cell of a script's claim in the table of docs/reproductions.md."""
    text = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    section = text.split(f"    python benchmarks/claims/{name}.py")[0].rsplit("\n## ", 1)[1]
    title = section.split("\n")[0]
    return re.search(rf"^\| \[{re.escape(title)}\]\(.*\| (.*) \|$", text, re.MULTILINE)[1]


def test_the_page_has_every_claim():
    text = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert re.search(rf"^    python benchmarks/claims/{name}.py( CLONE.*)?$", text, re.MULTILINE), name
        assert verdict(name).startswith(("holds", "not reproduced")), name
        assert re.search(r'^CLAIM = "(.*)"$', script, re.MULTILINE)[1] in " ".join(text.split()), name


def test_a_figure_that_does_not_hold_fails_the_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])
    common = runpy.run_path(str(FOLDER / "common.py"))
    figure = common["Figure"]
    assert common["main"]("claim", "source", lambda small: [figure("a", "1", "1", True)]) == 0
    assert common["main"]("claim", "source", lambda small: [figure("a", "1", "2", False)]) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out
