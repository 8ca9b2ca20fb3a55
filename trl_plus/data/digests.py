"""Digests of rows, which tell whether they are the same as they were. Standard library only."""

import hashlib
from collections.abc import Sequence
from typing import Any

_CONTENT = ("prompt", "chosen", "rejected", "completion", "label")


def rows_digest(dataset: Any, columns: Sequence[str]) -> str:
    """A digest of these columns of a map-style dataset, read in batches, in the order of its rows."""
    found = hashlib.sha256()
    known = [name for name in sorted(columns) if name in dataset.column_names]
    for batch in dataset.select_columns(known).with_format(None).iter(1000):
        for name in known:
            found.update(f"{name} {batch[name]!r};".encode())
    return found.hexdigest()


def held_out_digest(dataset: Any | None) -> str | None:
    """A digest of what held-out rows say, whatever other columns they have; None for a stream, or for no rows."""
    return rows_digest(dataset, _CONTENT) if hasattr(dataset, "__len__") else None
