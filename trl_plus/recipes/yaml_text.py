"""YAML as recipes need it: duplicate keys are errors, `1e-6` is a number, and every key knows its line."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_plus.errors import RecipeError

MAX_BYTES = 256 * 1024  # no recipe is larger; PyYAML takes seconds for a megabyte
MAX_DEPTH = 40
MAX_NODES = 20_000  # counted with every alias written out, as whatever reads the values will see them

# What PyYAML's constructors raise for a scalar that is not of its type: `!!int x`, a date in month 13, 5000 digits
_BAD_SCALAR = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the resolvers below and a limit on nesting, which would overflow Python's stack."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# YAML 1.1 reads `1e-6` and `1.0e5` as text; YAML 1.2, and everyone who writes a learning rate, as numbers.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    """The values of a YAML file and the line each top-level key stands on, counted from 1."""

    values: dict[str, Any]
    lines: dict[str, int]


def read_file(path: Path, label: str) -> Document:
    """Parse a recipe's file.

    Raises:
        RecipeError: the file cannot be read, is not YAML, is not a mapping, or has a key twice.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content[:MAX_BYTES].decode("utf-8") if len(content) <= MAX_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{label} cannot be read: {error}.") from error
    if text is None:
        raise RecipeError(f"{label} is larger than {MAX_BYTES // 1024} KiB: it is no recipe; name another file.")
    return parse(text, label)


def parse(text: str, label: str) -> Document:
    """Parse the text of a recipe; `label` names it in errors. Raises RecipeError as `read_file` does."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError(f"{label} is empty: write at least `method: simpo`.")
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{label} must be a YAML mapping of `key: value` lines.")
        _expanded_size(root)
        _refuse_duplicates(root, label)
        values = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise RecipeError(_describe(error, label)) from error
    except RecipeError:  # a ValueError, too
        raise
    except _BAD_SCALAR as error:
        raise RecipeError(f"{label} holds a value that is not of its type: {error}. Write it in quotes.") from error
    not_text = [key for key in values if not isinstance(key, str)]
    if not_text:
        raise RecipeError(f"{label}: the key {not_text[0]!r} is not text: put it in quotes.")
    return Document(values, {node.value: node.start_mark.line + 1 for node, _ in root.value})


def parse_value(text: str) -> Any:
    """One value from the command line, read as YAML; text that is not YAML (`{% ...`, `a: b: c`) stays text."""
    try:
        loader = _Loader(text)  # a safe loader
        root = loader.get_single_node()
        if root is None:
            return None
        _expanded_size(root)
        return loader.construct_document(root)
    except (yaml.YAMLError, *_BAD_SCALAR):
        return text


def inline(value: Any) -> str:
    """A value on one line of YAML, such that reading it returns the value."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _expanded_size(root: yaml.Node) -> int:
    """The number of nodes with every alias written out.

    Raises:
        YAMLError: there are more than MAX_NODES (ten aliases of ten aliases of ... fill any memory), or a node holds
            itself.
    """
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise yaml.composer.ComposerError(None, None, "an alias stands for what it is in", node.start_mark)
            return known
        sizes[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            total = 1 + sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total = 1 + sum(size(item) for item in node.value)
        else:
            total = 1
        if total > MAX_NODES:
            problem = f"more than {MAX_NODES} values, aliases written out"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        sizes[id(node)] = total
        return total

    return size(root)


def _refuse_duplicates(node: yaml.Node, label: str) -> None:
    """A key given twice would silently lose its first value."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, label)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key.value, str):
            if key.value in seen:
                raise RecipeError(
                    f"{label}, line {line}: `{key.value}` is already given on line {seen[key.value]}: keep one of them."
                )
            seen[key.value] = line
        _refuse_duplicates(value, label)


def _describe(error: yaml.YAMLError, label: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{label} is not valid YAML: {error}."
    mark = error.problem_mark
    return f"{label} is not valid YAML, line {mark.line + 1}, column {mark.column + 1}: {error.problem}."
