"""trl-plus train RECIPE: train a model from a recipe."""

import os
import shlex
from typing import Annotated, Any

import typer

from trl_plus.cli.exits import exit_codes

EPILOG = """[bold]Examples[/bold]

trl-plus train recipes/quickstart.yaml

trl-plus train simpo_lora --dry-run

trl-plus train simpo_lora learning_rate=5e-7 --beta 2.5 --bf16

trl-plus train my.yaml --resume

trl-plus train simpo_full --accelerate-config zero3

trl-plus train simpo_lora --num-processes 4
"""


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a bundled recipe.")],
    resume: Annotated[
        str | None,
        typer.Option(metavar="[PATH]", help="Resume from a checkpoint; without PATH from the newest in output_dir."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume even if the changed recipe makes it another run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that needs neither the hub nor weights, and stop.")
    ] = False,
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Do not look at a sample of the rows first.")
    ] = False,
    accelerate_config: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Launch with a configuration of ours, of TRL's, or a file of yours."),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Start N processes, counted over all machines.")
    ] = None,
) -> None:
    """Train a model from a recipe.

    Any key of the recipe can be set after it: --beta 2.5, --beta=2.5 or beta=2.5.
    """
    from trl_plus.launch.request import is_main_process, launch_request, launched
    from trl_plus.recipes.recipe import load_recipe
    from trl_plus.setup.machine_errors import check_machine, explained
    from trl_plus.ui.console import say
    from trl_plus.upstream.libraries import quiet_libraries

    with exit_codes():
        loaded = load_recipe(recipe, context.args)
        if is_main_process():
            for note in loaded.notes:
                say(note)
        check_machine(loaded)
        quiet_libraries()
        if dry_run:
            from trl_plus.setup.plan import plan, show_plan

            show_plan(plan(loaded, accelerate_config, num_processes))
            return
        words = _words(recipe, context.args, resume, force, no_preflight)
        _note_command(words, accelerate_config, num_processes)
        if (accelerate_config is not None or num_processes is not None) and not launched():
            raise typer.Exit(_start(loaded, words, accelerate_config, num_processes))
        from trl_plus.launch.processes import end_with_parent

        end_with_parent()
        from trl_plus.training.run import run

        with explained(loaded):
            run(loaded, resume, say, launch_request(accelerate_config, num_processes), force, not no_preflight)


def _words(recipe: str, overrides: list[str], resume: str | None, force: bool, no_preflight: bool) -> list[str]:
    """The words of the command line that every process gets."""
    words = [recipe, *overrides]
    words += [] if resume is None else [f"--resume={resume}"]
    words += ["--force"] if force else []
    return words + (["--no-preflight"] if no_preflight else [])


def _note_command(words: list[str], accelerate_config: str | None, num_processes: int | None) -> None:
    """Leave the whole command line to the run's journal, in this process or in those that it starts."""
    from trl_plus.launch.request import launched
    from trl_plus.runs.journal import COMMAND

    if launched() and COMMAND in os.environ:
        return
    words = [*words]
    words += [] if accelerate_config is None else ["--accelerate-config", accelerate_config]
    words += [] if num_processes is None else ["--num-processes", str(num_processes)]
    os.environ[COMMAND] = shlex.join(["trl-plus", "train", *words])


def _start(recipe: Any, words: list[str], accelerate_config: str | None, num_processes: int | None) -> int:
    """Run the same command in several processes; returns their exit code."""
    from trl_plus.launch.processes import start
    from trl_plus.launch.request import child_command, read_launch, this_machine

    started = read_launch(recipe, accelerate_config, num_processes, this_machine())
    return start(started, child_command(started, words, recipe["use_cpu"]))
