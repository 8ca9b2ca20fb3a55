"""trl-plus estimate RECIPE: memory and time of a run, before anything is loaded."""

from enum import StrEnum
from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus estimate recipes/quickstart.yaml

trl-plus estimate simpo_lora --device cuda --memory 24

trl-plus estimate my.yaml max_length=2048 --json

trl-plus estimate my.yaml --calibrate
"""


class Device(StrEnum):
    """Devices an estimate can be made for."""

    cpu = "cpu"
    cuda = "cuda"


def estimate(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.")],
    memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=0, help="Memory of a device; without it that of this machine's GPU."),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Estimate for this device; without it this machine's.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model, measure a few steps, and extrapolate the time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    accelerate_config: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="As for train: the engine of several processes.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(metavar="N", min=1, help="As for train.")] = None,
) -> None:
    """Estimate the memory of a recipe, the largest micro-batch that fits, and its steps. No weights are loaded.

    Any key of the recipe can be set after it: --beta 2.5, --beta=2.5 or beta=2.5.
    """
    import contextlib
    import json
    import sys

    from trl_plus.recipes.recipe import load_recipe
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        loaded = load_recipe(recipe, context.args)
        quiet_libraries()
        with contextlib.redirect_stdout(sys.stderr):
            from trl_plus.estimate import run

            found = run.estimate(loaded, device and device.value, memory, accelerate_config, num_processes)
            measured = run.calibrate(found) if calibrate else None
        from trl_plus.estimate import output as report

        if as_json:
            typer.echo(json.dumps(report.as_json(found, measured), indent=1))
        else:
            report.show(found, measured)
