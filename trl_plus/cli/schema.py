"""trl-plus schema: the JSON Schema of a recipe, for editors."""

from enum import StrEnum
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = "Example: trl-plus schema > recipe.schema.json"


class Format(StrEnum):
    """Formats of the schema."""

    json = "json"


def schema(
    format: Annotated[Format, typer.Option(help="JSON Schema, draft 7.")] = Format.json,
) -> None:
    """Print the JSON Schema of a recipe, for completion and checks in an editor."""
    import json

    from trl_plus.recipes.keys import recipe_schema

    with exit_codes():
        typer.echo(json.dumps(recipe_schema(), indent=1))
