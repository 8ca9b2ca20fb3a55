"""The command line. `main` is the entry point `trl-plus`; each command is a file and holds only arguments."""

import sys

import typer

from trl_plus._version import __version__
from trl_plus.cli.arguments import normalise, with_dashes
from trl_plus.cli.compare import EPILOG as COMPARE_EPILOG
from trl_plus.cli.compare import compare
from trl_plus.cli.env import env
from trl_plus.cli.estimate import EPILOG as ESTIMATE_EPILOG
from trl_plus.cli.estimate import estimate
from trl_plus.cli.evaluate import EPILOG as EVALUATE_EPILOG
from trl_plus.cli.evaluate import evaluate
from trl_plus.cli.merge import EPILOG as MERGE_EPILOG
from trl_plus.cli.merge import merge
from trl_plus.cli.preflight import EPILOG as PREFLIGHT_EPILOG
from trl_plus.cli.preflight import preflight
from trl_plus.cli.preview import EPILOG as PREVIEW_EPILOG
from trl_plus.cli.preview import preview
from trl_plus.cli.recipes import app as recipes
from trl_plus.cli.report import EPILOG as REPORT_EPILOG
from trl_plus.cli.report import report
from trl_plus.cli.schema import schema
from trl_plus.cli.streams import outlive_readers
from trl_plus.cli.train import EPILOG as TRAIN_EPILOG
from trl_plus.cli.train import train

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
app.command(context_settings=_OVERRIDES, epilog=TRAIN_EPILOG)(train)
app.command(context_settings=_OVERRIDES, epilog=PREFLIGHT_EPILOG)(preflight)
app.command(context_settings=_OVERRIDES, epilog=PREVIEW_EPILOG)(preview)
app.command(context_settings=_OVERRIDES, epilog=ESTIMATE_EPILOG)(estimate)
app.command(context_settings=_OVERRIDES, epilog=EVALUATE_EPILOG)(evaluate)
app.command(context_settings=_OVERRIDES, epilog=COMPARE_EPILOG)(compare)
app.command(epilog=REPORT_EPILOG)(report)
app.command(context_settings=_OVERRIDES, epilog=MERGE_EPILOG)(merge)
app.add_typer(recipes, name="recipes")
app.command(epilog="Example: trl-plus schema > recipe.schema.json")(schema)
app.command(epilog="Example: trl-plus env")(env)


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
    outlive_readers()
    app(args=normalise(sys.argv[1:]))
