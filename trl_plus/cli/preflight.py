"""trl-plus preflight RECIPE|DATASET: what is wrong with the data, before anything runs."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import PREFLIGHT, exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus preflight recipes/quickstart.yaml

trl-plus preflight my.yaml --all --html preflight.html

trl-plus preflight pairs.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --method simpo

trl-plus preflight my.yaml --rows 1000 --json > preflight.json

Exit codes: 0 no errors, 2 the recipe or data cannot be read, 3 errors were found (or warnings, with --strict).
"""


def preflight(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|DATASET", help="A recipe, or a dataset: a file, a folder, a hub id.")
    ],
    method: Annotated[str | None, typer.Option(help="The method that the data is for; guessed for a dataset.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID|PATH", help="The model whose tokenizer and chat template are used.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Look at this many rows of each split, drawn evenly.")] = 5000,
    all_rows: Annotated[bool, typer.Option("--all", help="Look at all rows.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on warnings, too.")] = False,
    with_model: Annotated[
        bool, typer.Option("--with-model", help="Load the model and score some pairs with it.")
    ] = False,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page.")] = None,
) -> None:
    """Check the rows exactly as the trainer will see them.

    Any key of the recipe can be set after it: max_length=2048, converter=hh.
    """
    from trl_plus.preflight.opening import open_argument
    from trl_plus.preflight.output import check_target, show_preflight
    from trl_plus.preflight.run import Extent
    from trl_plus.preflight.run import preflight as look
    from trl_plus.ui.console import row_progress
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        quiet_libraries()
        check_target(html)
        opened = open_argument(what, method, model, context.args)
        extent = Extent(rows=None if all_rows else rows, num_proc=num_proc)
        with row_progress(not as_json) as advance:
            result = look(opened.source, extent, advance)
        if with_model:
            from trl_plus.preflight.with_model import score_pairs

            score_pairs(opened, result)
        show_preflight(result, as_json, html)
        if result.fails(strict):
            raise typer.Exit(PREFLIGHT)
