"""The rules of the house that a machine can check (CONTRIBUTING.md). A rule that fails is a finding, not a nuisance.

One test per rule: it goes through all files and lists every place that breaks the rule.
"""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_plus"
UPSTREAM = PACKAGE / "upstream"
SEAMS = PACKAGE / "trainers" / "seams.py"
MAX_FUNCTION = 60

SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("trl_plus", "tests", "scripts", "benchmarks")
ALL = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def is_upstream(path):
    """Whether a file may name what is private or version-bound of other libraries."""
    return path == SEAMS or path.is_relative_to(UPSTREAM)


def check(broken):
    """Fail with one line for each place that breaks a rule."""
    broken = list(broken)
    assert not broken, "\n" + "\n".join(broken)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imported(path):
    """List (line, module) of everything that a file imports, at any depth."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, node.module or "")] + [(node.lineno, f"{node.module}.{a.name}") for a in node.names]
    return found


def docstrings(root):
    """Collect the ids of the nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.walk(root):
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr):
            found.add(id(node.body[0].value))
    return found


# -- arrows ---------------------------------------------------------------------------------------------------------

STANDARD = {"dataclasses", "math", "typing", "collections", "functools"}


def test_the_files_are_found():
    for folder in FOLDERS:
        assert any(path.is_relative_to(ROOT / folder) for path in ALL), folder
    assert SEAMS in SOURCES
    assert any(map(is_upstream, SOURCES))


def test_objectives_import_only_torch():
    paths = sorted((PACKAGE / "objectives").glob("*.py"))
    assert paths
    check(
        f"{name_of(path)}:{line} imports {module}"
        for path in paths
        for line, module in imported(path)
        if module.split(".")[0] not in STANDARD | {"torch"} and not module.startswith("trl_plus.objectives")
    )


def order_of_rooms():
    """Read the order of the rooms from CONTRIBUTING.md: the numbered list below "The order of the rooms"."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The order of the rooms")[1].split("\n## ")[0]
    )
    return [
        name
        for line in section.splitlines()
        if re.match(r"\d+\. ", line)
        for name in re.findall(r"`(\w+)`", line.split(":")[0])
    ]


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "trl_plus" and len(parts) > 1 else None


def test_every_room_is_in_the_order():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} - {"__init__"}
    order = order_of_rooms()
    assert len(order) == len(set(order))
    assert rooms == set(order)


def test_no_room_imports_a_later_one():
    order = order_of_rooms()
    broken = []
    for path in SOURCES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":  # the public names, imported on first use
            continue
        for line, module in imported(path):
            later = room_of(module)
            if later in order and order.index(later) > order.index(room):
                broken.append(f"{name_of(path)}:{line} imports {module}")
    check(broken)


NO_TORCH = ("errors", "methods", "published", "recipes", "runs", "ui")


def test_light_rooms_import_no_torch():
    heavy = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    heavy_rooms = {"objectives", "forward", "step", "trainers", "setup", "estimate", "evaluation"}
    broken = []
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in NO_TORCH:
            continue
        top = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            wrong = [m for m in modules if m.split(".")[0] in heavy or room_of(m) in heavy_rooms]
            broken += [f"{name_of(path)}:{node.lineno} imports {module}" for module in wrong]
    check(broken)


def registered(path, name):
    """Read the words of the tuple or list that a file assigns to a name."""
    (found,) = [
        ast.literal_eval(node.value)
        for node in tree(path).body
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == [name]
    ]
    return set(found)


def test_every_file_of_checks_and_commands_is_registered():
    """A file of checks that nothing imports finds nothing, and a command that is not in the list does not exist."""
    checks, cli = PACKAGE / "preflight" / "checks", PACKAGE / "cli"
    assert registered(checks / "__init__.py", "__all__") == {path.stem for path in checks.glob("*.py")} - {"__init__"}
    helpers = {"__init__", "__main__", "arguments", "exits", "streams"}
    assert registered(cli / "__init__.py", "_COMMANDS") == {path.stem for path in cli.glob("*.py")} - helpers


# -- other libraries ------------------------------------------------------------------------------------------------


def test_trl_experimental_is_not_imported():
    broken = []
    for path in SOURCES:
        broken += [f"{name_of(path)}:{line}" for line, name in imported(path) if name.startswith("trl.experimental")]
        skip = docstrings(tree(path))
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
                broken += [f"{name_of(path)}:{node.lineno}"] if "trl.experimental" in node.value else []
    check(broken)


# The table of refused keys tells what to write instead of `device_map`
REFUSES_DEVICE_MAP = PACKAGE / "recipes" / "unknown_keys.py"


def test_placement_is_left_to_accelerate():
    assert REFUSES_DEVICE_MAP in SOURCES
    broken = []
    for path in SOURCES:
        if path == REFUSES_DEVICE_MAP:
            continue
        skip = docstrings(tree(path))
        for node in ast.walk(tree(path)):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in skip else None
            names = [text, getattr(node, "arg", None), getattr(node, "attr", None), getattr(node, "id", None)]
            if any("device_map" in str(name) for name in names):
                broken.append(f"{name_of(path)}:{getattr(node, 'lineno', '?')}")
    check(broken)


def private_names_of_trainers():
    """Collect the private methods and attributes of TRL's and transformers' trainers."""
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
    """Yield (line, name) of private attributes, of methods that classes define, and of strings."""
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
    check(
        f"{name_of(path)}:{line} {name}"
        for path in SOURCES
        if not is_upstream(path)
        for line, name in private_uses(path)
        if name in private
    )


def test_nothing_private_is_imported_from_other_libraries():
    check(
        f"{name_of(path)}:{node.lineno} {alias.name}"
        for path in SOURCES
        if not is_upstream(path)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("trl_plus")
        for alias in node.names
        if alias.name.startswith("_") and alias.name[1:2] != "_"
    )


# -- size -----------------------------------------------------------------------------------------------------------


def test_functions_are_short():
    check(
        f"{name_of(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in ALL
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    )


# -- docstrings -----------------------------------------------------------------------------------------------------


def test_modules_have_docstrings():
    # One line: an empty __init__, or the version that the build reads
    check(name_of(path) for path in SOURCES if len(tree(path).body) > 1 and not ast.get_docstring(tree(path)))


def test_public_objectives_have_docstrings():
    check(
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in SOURCES
        if path.parent.name == "objectives"
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    )


def test_docstrings_begin_with_their_subject():
    """A verb or the thing itself: "Return the rows", "Rows of a step", "True if a row is empty"."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    check(
        f"{name_of(path)}:{getattr(node, 'lineno', 1)} {ast.get_docstring(node).split()[0]}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, owners)
        and (ast.get_docstring(node) or "").startswith(("What ", "Whether ", "Where ", "Which "))
    )
