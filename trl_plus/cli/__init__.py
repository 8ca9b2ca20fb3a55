"""The command line. `main` is the entry point `trl-plus`; each command is a file and holds only arguments."""

import sys
from importlib import import_module

import typer

from trl_plus._version import __version__
from trl_plus.cli.arguments import normalise, with_dashes
from trl_plus.cli.streams import outlive_readers
from trl_plus.upstream import deferred

# Each command is a function of its name in a file of its name, with its examples in EPILOG
_OF_A_RECIPE = (
    "train",
    "sweep",
    "preflight",
    "preview",
    "estimate",
    "evaluate",
    "compare",
    "merge",
)  # these take overrides
_COMMANDS = (
    "train", "sweep", "preflight", "preview", "estimate", "evaluate", "compare", "report", "merge", "recipes", "schema",
    "env",
)  # fmt: skip
_HELP = "Preference alignment on top of TRL: SimPO, ORPO, CPO, KTO and the DPO family, one command per recipe."
_EPILOG = (
    "Exit codes: 0 done, 1 the run failed, 2 wrong usage, recipe or data, 3 preflight found errors, 130 interrupted."
)

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": with_dashes},  # the commands inherit it
)
# overrides are any key of the recipe, so Typer leaves options that it does not know alone
_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
for _name in _COMMANDS:
    _module = import_module(f"trl_plus.cli.{_name}")
    if _name == "recipes":
        app.add_typer(_module.app, name=_name)
    else:
        _settings = _OVERRIDES if _name in _OF_A_RECIPE else None
        app.command(context_settings=_settings, epilog=_module.EPILOG)(getattr(_module, _name))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trl-plus {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line with the process's arguments."""
    deferred.in_command = True
    outlive_readers()
    app(args=normalise(sys.argv[1:]))
