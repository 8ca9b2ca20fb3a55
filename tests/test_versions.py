"""The versions that are declared, pinned, documented and tested are the same."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
CI = ROOT / ".ci" / "run"


def pins(name):
    """Version by package of a file of constraints; every line is an exact version."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in found}


def declared(*extras):
    texts = PYPROJECT["project"]["dependencies"] + [text for extra in extras for text in EXTRAS[extra]]
    found = [Requirement(text) for text in texts]
    return {canonicalize_name(r.name): r.specifier for r in found if r.name != "trl-plus"}


def test_oldest_are_the_declared_minima():
    oldest = pins("constraints-oldest.txt")
    for name, specifier in declared("qlora", "test").items():
        (minimum,) = (Version(part.version) for part in specifier if part.operator == ">=")
        assert oldest[name] == minimum, f"{name}: {oldest[name]} in constraints-oldest.txt, {minimum} in pyproject.toml"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_what_is_pinned_is_declared(name):
    pinned = pins(name)
    for package, specifier in declared("qlora", "test").items():
        assert pinned[package] in specifier, package


def test_python_versions_agree():
    project = PYPROJECT["project"]
    known = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if re.search(r"Python :: 3\.\d", c)]
    assert project["requires-python"] == f">={known[0]}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + known[0].replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == known[0]
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for python in known:
        assert f"| {python} |" in page


@pytest.mark.skipif(not CI.is_file(), reason="an sdist has no .ci")
def test_the_page_names_what_ci_runs():
    script, page = CI.read_text(encoding="utf-8"), (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for name in ("constraints.txt", "constraints-oldest.txt"):
        assert name in script
        assert name in page
