"""Printing on the main process: sentences and tables on standard output."""

from typing import Any

from rich.console import Console

from trl_plus.ui.printable import printable


def say(what: Any) -> None:
    """Print a sentence or a rich table. Sentences are printed as they are, without markup or wrapping."""
    console = Console()
    if isinstance(what, str):
        console.print(printable(what), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(what)
