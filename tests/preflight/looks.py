"""A preflight of rows in a file, and what it said, in the shape that tests compare."""

from pathlib import Path
from typing import Any

from tests.preflight.corpus import Form, write
from trl_plus.data.mixture import DataRequest
from trl_plus.preflight.findings import Result
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.source import open_dataset

EVERYTHING = Extent(rows=None)


def look(rows: list[dict[str, Any]], form: Form, path: Path, extent: Extent = EVERYTHING, **request: Any) -> Result:
    """A preflight without a model of rows that are written to `path` first."""
    write(rows, path)
    return look_at(str(path), form, extent, **request)


def look_at(name: str, form: Form, extent: Extent = EVERYTHING, **request: Any) -> Result:
    paired = form.method != "kto"
    return preflight(open_dataset(DataRequest(paired_method=paired, name=name, **request), form.method), extent)


def counts(result: Result) -> dict[str, int]:
    """Rows found by code."""
    return {finding.code: finding.count for finding in result.findings}


def first_rows(result: Result) -> dict[str, list[int]]:
    """Source rows of the examples by code."""
    return {finding.code: [example.row for example in finding.examples] for finding in result.findings}
