"""Exit codes: 1 the run failed, 2 wrong usage, recipe or data, 3 preflight found errors, 130 interrupted."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trl_plus.errors import DataError, DataFound, RecipeError, RunFault
from trl_plus.launch.request import is_main_process
from trl_plus.ui.console import printable
from trl_plus.upstream.signatures import explain

PREFLIGHT = 3


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn exceptions into exit codes: one message for the user's errors, a traceback for ours."""
    try:
        yield
    except (RecipeError, DataError) as error:
        typer.echo(printable(f"error: {error}"), err=True)
        raise typer.Exit(2) from None
    except DataFound as error:
        if is_main_process():
            typer.echo(printable(f"error: {error}"), err=True)
        raise typer.Exit(PREFLIGHT) from None
    except RunFault as error:
        typer.echo(printable(f"error: {error}"), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        if is_main_process():
            typer.echo(printable(str(error) or "Interrupted."), err=True)  # of Stopped: what was saved
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        if (sentence := explain(error) if isinstance(error, ImportError) else None) is None:
            traceback.print_exc()
        elif is_main_process():
            typer.echo(printable(f"error: {sentence}"), err=True)
        raise typer.Exit(1) from None
