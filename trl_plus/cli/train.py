"""trl-plus train RECIPE: train a model from a recipe."""

from typing import Annotated

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus train recipes/quickstart.yaml

trl-plus train simpo_lora --dry-run

trl-plus train simpo_lora learning_rate=5e-7 --beta 2.5 --bf16

trl-plus train my.yaml --resume

trl-plus train simpo_full --accelerate-config zero3
"""


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.")],
    resume: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Go on from a checkpoint; without PATH from the newest in output_dir."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that needs neither the hub nor weights, and stop.")
    ] = False,
    accelerate_config: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Launch with one of TRL's accelerate configurations, or a file."),
    ] = None,
) -> None:
    """Train a model from a recipe.

    Any key of the recipe can be set after it: --beta 2.5, --beta=2.5 or beta=2.5.
    """
    from trl_plus.recipes import load_recipe
    from trl_plus.recipes.launch import launch, launched
    from trl_plus.recipes.quiet import quiet_libraries
    from trl_plus.recipes.run import is_main_process
    from trl_plus.reporting.console import say

    with exit_codes():
        loaded = load_recipe(recipe, context.args)
        if is_main_process():
            for note in loaded.notes:
                say(note)
        quiet_libraries()
        if dry_run:
            from trl_plus.recipes.dry_run import plan
            from trl_plus.reporting.plan import show_plan

            show_plan(plan(loaded, accelerate_config))
        elif accelerate_config is not None and not launched():
            raise typer.Exit(launch(accelerate_config, recipe, context.args, resume))
        else:
            from trl_plus.recipes.run import run

            run(loaded, resume, say)
