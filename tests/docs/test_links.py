"""Every link of a page leads somewhere, and every file and function that a page names exists.

Pages of docs/ link to each other only: the site holds nothing else. What lies elsewhere they name as code, `tests/...`,
which reads the same on GitHub and on the site, and is checked here instead.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, all_code, anchors_of, links_of

# `recipes/a-b/...` is how other projects' pages name their recipes
NAMED = re.compile(
    r"((?:(?:tests|scripts|benchmarks)/|trl_plus/(?=[\w/]+[./])|recipes/(?=(?:engines/)?\w+\.yaml))[\w./-]+?)"
    r"(?:(?:: |::)(\w+))?"
)


def broken_links(text, page):
    """What is wrong with the links of a page."""
    found = []
    for line, target in links_of(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if linked != page and not linked.exists():
            found.append(f"line {line}: {target} does not exist")
        elif page.parent.name == "docs" and not linked.is_relative_to(page.parent):
            found.append(f"line {line}: {target} is not on the site: name it as code")
        elif anchor and linked.suffix == ".md":
            heading_source = text if linked == page else linked.read_text(encoding="utf-8")
            if anchor not in anchors_of(heading_source):
                found.append(f"line {line}: {target} is no heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    assert not broken_links(page.read_text(encoding="utf-8"), page)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[a](nothing.md)", "does not exist"),
        ("| a |\n| --- |\n| [a](data.md#nothing) |", "is no heading"),
        ("# Here\n\n[a](#there)", "is no heading"),
        ("![a](images/none.png)", "does not exist"),
        ("[a][1]\n\n[1]: nothing.md", "does not exist"),
        ("[a](../README.md)", "is not on the site"),
        ("# A\n\n# A\n\n[a](#a-2)", "is no heading"),
    ],
)
def test_a_broken_link_is_found(text, problem):
    (found,) = broken_links(text, ROOT / "docs" / "page.md")
    assert problem in found


def test_links_that_work_are_left_alone():
    text = (
        "# A\n\n# A\n\n## b_c and `d`\n\n[a](#a-1) [b](#b_c-and-d) [c](data.md#converters) [d](https://x.org) `[e](f)`"
    )
    assert not broken_links(text, ROOT / "docs" / "page.md")


def defined_in(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def names_nothing(text):
    """Whether a piece of code names a file or function that does not exist."""
    match = NAMED.fullmatch(text)
    if match is None:
        return False
    path, name = ROOT / match[1], match[2]
    return not path.exists() or (name is not None and name not in defined_in(path))


def test_files_and_functions_that_are_named_exist():
    spans = [code for code in all_code() if code.language is None]
    assert sum(NAMED.fullmatch(code.text) is not None for code in spans) > 80
    assert not [f"{code.id} names {code.text}" for code in spans if names_nothing(code.text)]


@pytest.mark.parametrize(
    "text",
    ["tests/none.py", "recipes/none.yaml", "trl_plus/forward/score.py: nothing", "tests/conftest.py::test_nothing"],
)
def test_a_name_of_nothing_is_found(text):
    assert names_nothing(text)


def test_pages_that_messages_name_exist():
    """Messages and docstrings say `docs/data.md`."""
    sources = [
        path for folder in ("trl_plus", "scripts", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {
        (str(path.relative_to(ROOT)), page)
        for path in sources
        if path.parent != Path(__file__).parent
        for page in re.findall(r"\bdocs/[\w-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert not [f"{path} names {page}" for path, page in named if not (ROOT / page).is_file()]
