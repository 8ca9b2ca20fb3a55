"""The rules of the house that a machine can check (CONTRIBUTING.md). A rule that fails is a finding, not a nuisance."""

import ast
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_plus"
UPSTREAM = PACKAGE / "trainers" / "upstream.py"
SEAMS = PACKAGE / "seams.py"  # lists the names that upstream.py touches
MAX_FUNCTION = 60

SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("trl_plus", "tests", "scripts", "benchmarks")
ALL = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path):
    """(line, module) of everything a file imports, at any depth."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, node.module or "")] + [(node.lineno, f"{node.module}.{a.name}") for a in node.names]
    return found


def docstrings(root):
    """The nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.walk(root):
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr):
            found.add(id(node.body[0].value))
    return found


# -- arrows ---------------------------------------------------------------------------------------------------------

STANDARD = {"dataclasses", "math", "typing", "collections", "functools"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "objectives").glob("*.py")), ids=name_of)
def test_objectives_import_only_torch(path):
    for line, module in imported(path):
        root = module.split(".")[0]
        assert root in STANDARD | {"torch"} or module.startswith("trl_plus.objectives"), f"{name_of(path)}:{line}"


_ABOVE_DATA = {"recipes", "reporting", "preflight", "evaluation", "merging", "comparison", "cli"}
# package: the packages of trl_plus that nothing in it may import
FORBIDDEN = {
    "objectives": {"batching", "scoring", "trainers", "configs", "data"} | _ABOVE_DATA,
    "batching": {"scoring", "trainers", "configs"} | _ABOVE_DATA,
    "data": {"scoring", "batching", "trainers"} | _ABOVE_DATA,
    "trainers": _ABOVE_DATA,
    "recipes": {"cli"},
    "estimate": {"reporting", "cli"},
    "reporting": {"cli"},
    "preflight": {"cli"},
    "evaluation": {"merging", "comparison", "reporting", "cli"},
    "merging": {"comparison", "reporting", "cli"},
    "comparison": {"merging", "reporting", "cli"},
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_point_one_way(package):
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for line, module in imported(path):
            parts = module.split(".")
            wrong = parts[0] == "trl_plus" and len(parts) > 1 and parts[1] in FORBIDDEN[package]
            assert not wrong, f"{name_of(path)}:{line} imports {module}"


# -- other libraries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_trl_experimental_is_not_imported(path):
    for line, module in imported(path):
        assert not module.startswith("trl.experimental"), f"{name_of(path)}:{line}"
    root = tree(path)
    skip = docstrings(root)
    for node in ast.walk(root):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
            assert "trl.experimental" not in node.value, f"{name_of(path)}:{node.lineno}"


# The table of refused keys says what to write instead of `device_map`
REFUSES_DEVICE_MAP = PACKAGE / "recipes" / "renamed.py"


@pytest.mark.parametrize("path", [path for path in SOURCES if path != REFUSES_DEVICE_MAP], ids=name_of)
def test_placement_is_left_to_accelerate(path):
    root = tree(path)
    skip = docstrings(root)
    for node in ast.walk(root):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in skip else None
        names = [text, getattr(node, "arg", None), getattr(node, "attr", None), getattr(node, "id", None)]
        for name in names:
            assert "device_map" not in str(name), f"{name_of(path)}:{getattr(node, 'lineno', '?')}"


def private_names_of_trainers():
    """Private methods and attributes of TRL's and transformers' trainers."""
    import transformers.trainer
    from trl.trainer import base_trainer, dpo_trainer, kto_trainer

    names = set()
    for module in (transformers.trainer, base_trainer, dpo_trainer, kto_trainer):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_uses(path):
    """(line, name) of private attributes, methods that are defined in classes, and private imports from outside."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    yield item.lineno, item.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value  # getattr(trainer, "_metrics")


def test_the_private_names_are_found():
    inherited = {"_metrics", "_signature_columns", "_total_train_tokens", "_tokenizer"}
    assert inherited | {"_compute_loss", "_prepare_dataset"} <= private_names_of_trainers()


def test_only_upstream_names_what_is_private():
    private = private_names_of_trainers()
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in SOURCES
        if path not in (UPSTREAM, SEAMS)
        for line, name in private_uses(path)
        if name in private
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [path for path in SOURCES if path != UPSTREAM], ids=name_of)
def test_nothing_private_is_imported_from_other_libraries(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("trl_plus"):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1:2] != "_"]
            assert not private, f"{name_of(path)}:{node.lineno} {private}"


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_functions_are_short(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"


# -- docstrings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_public_objectives_have_docstrings(path):
    root = tree(path)
    one_line = len(root.body) <= 1  # an empty __init__, or the version that the build reads
    assert ast.get_docstring(root) or one_line, name_of(path)
    if path.parent.name == "objectives":
        for node in root.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name_of(path)}:{node.lineno} {node.name}"
