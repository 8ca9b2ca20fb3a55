"""Output of a preflight and of previews: the terminal, JSON on standard output, a page."""

import os
import sys
from pathlib import Path

from trl_plus.errors import DataError
from trl_plus.preflight.findings import Preview, Result
from trl_plus.ui.console import say


def show_preflight(result: Result, as_json: bool, html: Path | None) -> None:
    """Print a result, as a table or as JSON and nothing else, and write its page if one is asked for."""
    if as_json:
        from trl_plus.preflight.as_json import json_text

        print(json_text(result))
    else:
        from trl_plus.preflight.table import preflight_report

        say(preflight_report(result))
    if html is not None:
        from trl_plus.preflight.page import preflight_page

        _write(preflight_page(result), html)
        print(f"Wrote {html}.", file=sys.stderr if as_json else sys.stdout)


def check_target(html: Path | None) -> None:
    """Before any work: a page can be written there.

    Raises:
        DataError: it cannot.
    """
    if html is None:
        return
    path = html.expanduser()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        why = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent} to write to"
        raise DataError(f"--html {html} {why}. Name a file.")


def show_previews(previews: list[Preview], source: str, html: Path | None) -> None:
    """Print rows token by token, or write them to a page."""
    if html is None:
        from trl_plus.preflight.preview_shown import TokenPreview

        say(TokenPreview(previews))
        return
    from trl_plus.preflight.preview_shown import preview_page

    _write(preview_page(previews, source), html)
    say(f"Wrote {html}.")


def _write(page: str, path: Path) -> None:
    from trl_plus.ui.pages import write_page

    try:
        write_page(page, path.expanduser())
    except (OSError, ValueError) as error:
        raise DataError(
            f"--html {path} cannot be written: {getattr(error, 'strerror', None) or error}. Name another file."
        ) from error
