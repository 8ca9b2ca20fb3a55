"""The tables of the bundled recipes."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from trl_plus.recipes.package_data import published_names, recipe_names, recipe_path
from trl_plus.recipes.yaml_text import read_file

_GROUPS = (
    ("Starting points", recipe_names),
    ("Published recipes: figures of others, each with its source", published_names),
)


def recipe_tables() -> Iterator[Table]:
    """Name, method and first header line of every bundled recipe, in one table for each group."""
    names = [list_names() for _, list_names in _GROUPS]
    width = max(len(name) for group in names for name in group)
    for (title, _), group in zip(_GROUPS, names, strict=True):
        yield _table(title, group, width)


def _table(title: str, names: Sequence[str], width: int) -> Table:
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("name", overflow="fold", no_wrap=True, min_width=width)
    table.add_column("method", overflow="fold", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for name in names:
        path = recipe_path(name)
        method = read_file(path, name).values["method"]
        headline = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        table.add_row(name, method, headline)
    return table
