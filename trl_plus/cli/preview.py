"""trl-plus preview RECIPE: rows as the tokens that are trained on."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus preview recipes/quickstart.yaml

trl-plus preview my.yaml -n 10 --html preview.html

trl-plus preview my.yaml --row 137
"""


def preview(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|DATASET", help="A recipe, or a dataset together with --model.")
    ],
    count: Annotated[int, typer.Option("-n", min=1, help="Show this many rows, spread over the data.")] = 3,
    row: Annotated[int | None, typer.Option(metavar="I", min=0, help="Show this row, counted from 0.")] = None,
    split: Annotated[str, typer.Option(help="train or eval.")] = "train",
    method: Annotated[str | None, typer.Option(help="The method that the data is for; guessed for a dataset.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID|PATH", help="The model whose tokenizer and chat template are used.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page instead.")] = None,
) -> None:
    """Show rows as token sequences: prompts dim, responses bright, special tokens marked, cut tokens struck through."""
    from trl_plus.preflight.opening import open_argument
    from trl_plus.preflight.output import check_target, show_previews
    from trl_plus.preflight.previews import preview_source
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        quiet_libraries()
        check_target(html)
        opened = open_argument(what, method, model, context.args)
        show_previews(preview_source(opened.source, split, count, row), opened.source.label, html)
