"""trl-plus evaluate RECIPE|RUN: held-out accuracy and margins of the base and the tuned model."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus evaluate runs/quickstart

trl-plus evaluate runs/quickstart --by kind

trl-plus evaluate runs/simpo_lora/checkpoint-400 --all --json > evaluation.json

trl-plus evaluate my.yaml --model path/to/adapter-or-model
"""


def evaluate(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(metavar="RECIPE|RUN", help="A recipe, the output folder of a run, or a checkpoint in one."),
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="ID|PATH", help="Tuned weights, an adapter or a model, instead of the run's own."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most this many held-out rows, instead of the recipe's max_eval_rows.")
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="All held-out rows.")] = False,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Tell sources apart by this column, instead of `source`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Score the held-out rows with the base model and the tuned one, with 95% intervals.

    The result is kept in the run's folder, where `trl-plus report` finds it.

    Any key of the recipe can be set after it: per_device_eval_batch_size=32, eval_dataset_name=other.jsonl.
    """
    from trl_plus.runs.weights import open_tuned
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        recipe, weights = open_tuned(what, model, context.args)
        quiet_libraries()  # before the libraries are imported

        from trl_plus.evaluation.output import show_evaluation
        from trl_plus.evaluation.run import ALL
        from trl_plus.evaluation.run import evaluate as measure
        from trl_plus.ui.console import row_progress

        with row_progress(not as_json, "Scoring with {}") as advance:
            result = measure(recipe, weights, ALL if all_rows else rows, by, advance)
        own = weights is not None and weights.adapter is not None and model is None
        show_evaluation(result, as_json, Path(weights.path) if own else None)
