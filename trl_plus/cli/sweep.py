"""trl-plus sweep RECIPE KEY=V1,V2 ...: train a grid of values and seeds, and compare the values."""

from pathlib import Path
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus sweep recipes/quickstart.yaml learning_rate=5e-4,1e-3,2e-3 --seeds 3

trl-plus sweep simpo_lora beta=2,2.5 gamma_beta_ratio=0.3,0.5 --out runs/betas

trl-plus sweep my.yaml learning_rate=1e-6,3e-6,1e-5,3e-5 --budget 2000

trl-plus sweep my.yaml beta=0.05,0.1 --jobs 4
"""


def sweep(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.")],
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Seeds of each value, counted up from the recipe's; 3 if not given."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Successive halving with so many optimizer steps over all runs."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of parallel processes, each with its own GPU.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the runs; OUTPUT_DIR-sweep if not given.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page here instead of DIR/sweep.html.")
    ] = None,
) -> None:
    """Train every combination of some values with several seeds, and report which differences hold.

    A key with several values is swept: beta=2,2.5. Any other key can be set as for train. The same command continues a
    sweep that was stopped.
    """
    from trl_plus.sweep.grid import read_plan
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        read_plan(recipe, context.args, seeds, out, budget)  # before the libraries are imported
        quiet_libraries()

        from trl_plus.sweep.output import show_results
        from trl_plus.sweep.run import sweep as make
        from trl_plus.ui.console import say

        found = make(recipe, context.args, seeds, out, budget, jobs, say)
        show_results(found, html)
        if found.failed:
            raise typer.Exit(1)
