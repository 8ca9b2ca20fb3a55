"""Previews as one HTML page, drawn as on the page of a preflight."""

from trl_plus.preflight.findings import Preview
from trl_plus.preflight.preview_parts import heading, parts_of
from trl_plus.preflight.words import PARAGRAPH
from trl_plus.ui.console import clipped
from trl_plus.ui.pages import render


def preview_page(previews: list[Preview], source: str) -> str:
    """The rows, token by token, as trained on. `source` names the recipe or dataset."""
    return render(
        "preview.html.j2",
        name=clipped(source, PARAGRAPH),
        previews=previews,
        open_previews=len(previews),
        heading=heading,
        parts_of=parts_of,
    )
