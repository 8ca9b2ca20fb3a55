"""Where a preflight and previews go: the terminal, JSON on standard output, a page."""

import sys
from pathlib import Path

from trl_plus.data.files import DataError
from trl_plus.preflight.findings import Preview, Result
from trl_plus.reporting.console import say


def show_preflight(result: Result, as_json: bool, html: Path | None) -> None:
    """Print a result, as a table or as JSON and nothing else, and write its page if one is asked for."""
    if html is not None:
        from trl_plus.reporting.preflight_html import preflight_page

        _write(preflight_page(result), html)
    if as_json:
        from trl_plus.reporting.preflight_json import json_text

        print(json_text(result))
    else:
        from trl_plus.reporting.preflight_table import preflight_report

        say(preflight_report(result))
    if html is not None:
        print(f"Wrote {html}.", file=sys.stderr if as_json else sys.stdout)


def show_previews(previews: list[Preview], source: str, html: Path | None) -> None:
    """Print rows token by token, or write them to a page."""
    if html is None:
        from trl_plus.reporting.preview_text import TokenPreview

        say(TokenPreview(previews))
        return
    from trl_plus.reporting.preview_html import preview_page

    _write(preview_page(previews, source), html)
    say(f"Wrote {html}.")


def _write(page: str, path: Path) -> None:
    from trl_plus.reporting.pages import write_page

    try:
        write_page(page, path.expanduser())
    except OSError as error:
        raise DataError(f"--html {path} cannot be written: {error.strerror}. Name another file.") from error
