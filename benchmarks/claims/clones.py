"""Functions of other people's repositories, read from a clone at run time. Nothing of them is kept here.

Their files import what may not be installed, so only the named functions and classes are compiled, and the caller
provides the names that they use.
"""

import __future__

import ast
from pathlib import Path
from typing import Any


def skip(words: str) -> list[Any]:
    """Print why nothing is measured; returns no figures."""
    print(f"Skipped: {words}")
    return []


def definitions(path: Path, names: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """Compile functions and classes of a file, without the rest of it.

    Args:
        path: a Python file.
        names: `function`, `Class`, or `Class.method` for a method as a plain function. Decorators are left out.
        namespace: what their code finds as globals. Annotations are not evaluated.

    Returns:
        The namespace, with each definition under its own name without the class.

    Raises:
        SystemExit: the file has no such name.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for name in names:
        nodes: list[Any] = tree.body
        for part in name.split("."):
            node = next((n for n in nodes if getattr(n, "name", None) == part), None)
            if node is None:
                raise SystemExit(f"{path} has no {name}. Fix: use a commit of the repository that has it.")
            nodes = node.body
        node.decorator_list = []
        found.append(node)
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module(found, []), str(path), "exec", flags=flags, dont_inherit=True), namespace)
    return namespace
