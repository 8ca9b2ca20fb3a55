"""trl-plus recipes: the recipes that ship with the package."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

app = typer.Typer(help="List, show and copy the bundled recipes.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A bundled recipe, such as simpo_lora.")]


@app.command("list", epilog="Example: trl-plus recipes list")
def list_() -> None:
    """List the bundled recipes: the starting points, and those that others have published."""
    from trl_plus.recipes.package_data import recipe_tables
    from trl_plus.ui.console import say

    with exit_codes():
        for table in recipe_tables():
            say(table)


@app.command(epilog="Example: trl-plus recipes show simpo_lora")
def show(name: Name) -> None:
    """Print a bundled recipe."""
    from trl_plus.recipes.package_data import recipe_path

    with exit_codes():
        typer.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


@app.command(epilog="Example: trl-plus recipes copy simpo_lora my.yaml")
def copy(
    name: Name,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A new file, or a folder.")],
) -> None:
    """Copy a bundled recipe, to change it. An existing file is never overwritten."""
    from trl_plus.recipes.package_data import copy_recipe

    with exit_codes():
        typer.echo(f"Wrote {copy_recipe(name, destination)}.")
