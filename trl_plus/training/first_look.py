"""The look that `train` takes at a sample of the rows before it loads the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_plus.errors import DataFound
from trl_plus.runs.folder import PREFLIGHT
from trl_plus.setup.objects import RunObjects

ROWS = 200
NAMED = 3  # warnings that `train` names


def look(objects: RunObjects, processor: Any, say: Callable[[Any], None]) -> Any:
    """Run preflight on a sample of the rows, return its result, and print the number of warnings.

    Raises:
        DataFound: there are errors. Warnings stop nothing.
    """
    from trl_plus.preflight.findings import Severity
    from trl_plus.preflight.run import Extent, preflight
    from trl_plus.preflight.source import open_run

    result = preflight(open_run(objects, processor), Extent(rows=ROWS, near=False, previews=0))
    errors = [finding for finding in result.findings if finding.severity is Severity.ERROR]
    looked = ", ".join(f"{split.checked} {split.name}" for split in result.splits)
    command = objects.recipe.command("preflight")
    if errors:
        kinds = f"{len(errors)} kind{'s' if len(errors) > 1 else ''} of errors"
        raise DataFound(
            "\n".join(
                [
                    f"preflight found {kinds} in the data ({looked} rows looked at):",
                    *(f"- {found.code} {found.split}: {found.sentence}{_rows(found)} {found.cure}" for found in errors),
                    f"See all of it with `{command}`, or train all the same with --no-preflight.",
                ]
            )
        )
    warnings = sorted((found for found in result.findings if found.severity is Severity.WARNING), key=_weight)
    plain = next((found for found in warnings if found.code == "D413" and found.split == "train"), None)
    if plain is not None:
        say(f"Preflight: D413 {plain.sentence}{_rows(plain)} {plain.cure}")
    if warnings:
        codes = len({found.code for found in warnings})
        kinds = f"{codes} warning{'s' if codes > 1 else ''}"
        say(f"Preflight: no errors and {kinds} in {looked} rows: {_named(warnings)}. `{command}` shows them.")
    else:
        say(f"Preflight: no errors and no warnings in {looked} rows.")
    return result


def keep_preflight(result: Any | None, folder: Path) -> None:
    """Write what preflight found into the folder of its run; None if it was left out."""
    from trl_plus.preflight.as_json import json_text

    if result is None:
        return
    path = folder / PREFLIGHT
    part = path.with_name(f"{PREFLIGHT}.part")
    part.write_text(json_text(result) + "\n", encoding="utf-8")
    part.replace(path)


def _weight(found: Any) -> tuple[bool, bool, float]:
    """The order of warnings: training rows first, then what is true of the whole split, then by the share of rows."""
    return found.split != "train", found.count > 0, -found.share


def _named(warnings: list[Any]) -> str:
    """The first codes, each once, with their splits and title."""
    splits: dict[tuple[str, str], list[str]] = {}
    for found in warnings:
        splits.setdefault((found.code, found.title), []).append(found.split)
    named = [f"{code} {', '.join(where)}: {title}" for (code, title), where in splits.items()]
    return "; ".join(named[:NAMED]) + (f"; and {len(named) - NAMED} more" if len(named) > NAMED else "")


def _rows(found: Any) -> str:
    rows = ", ".join(str(example.row) for example in found.examples)
    more = ", ..." if found.count > len(found.examples) else ""
    return f" Row{'s' if found.count > 1 else ''} {rows}{more}." if rows else ""
