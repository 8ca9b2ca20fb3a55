"""The table of the bundled recipes."""

from rich.table import Table

from trl_plus.recipes.package_data import recipe_names, recipe_path
from trl_plus.recipes.yaml_text import read_file


def recipe_table() -> Table:
    """Name, method and first header line of every bundled recipe."""
    table = Table(box=None)
    for column in ("name", "method", "what it does"):
        table.add_column(column, overflow="fold", no_wrap=column != "what it does")
    for name in recipe_names():
        path = recipe_path(name)
        method = read_file(path, name).values["method"]
        headline = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        table.add_row(name, method, headline)
    return table
