"""The effect of `max_length` on rows: counted per side, reported in one sentence, governed by `overlong`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

_BATCH = 10_000


@dataclass(frozen=True)
class LengthReport:
    """Counts of one dataset; `cut` and `lost_end` by side ("chosen", "rejected" or "completion")."""

    rows: int
    dropped: int
    cut: dict[str, int]
    one_sided: int

    def sentence(self, name: str, max_length: int, end_is_cut: bool = True) -> str | None:
        """The report as a sentence, or None if nothing was dropped or cut."""
        parts = []
        if self.dropped:
            parts.append(f"{self.dropped} of {self.rows} rows dropped (the prompt leaves no room, or overlong: drop)")
        if any(self.cut.values()):
            sides = " and ".join(f"{count} {side}" for side, count in self.cut.items() if side != "completion")
            completions = f"{sides} completions" if sides else f"{self.cut['completion']} completions"
            lost = ", their end-of-sequence token with them" if end_is_cut else " from the front"
            parts.append(f"{completions} cut{lost}")
        if self.one_sided:
            parts.append(f"{self.one_sided} of these rows on one side only")
        return f"{name} data, max_length {max_length}: {'; '.join(parts)}." if parts else None


def lengths(dataset: Any, columns: list[str]) -> dict[str, np.ndarray]:
    """Number of tokens of list columns, each (rows,) int64, read in batches without touching the other columns."""
    found: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    for batch in dataset.select_columns(columns).with_format("arrow").iter(_BATCH):
        for column in columns:
            found[column].append(pc.list_value_length(batch[column]).to_numpy(zero_copy_only=False))
    return {column: np.concatenate(parts) if parts else np.zeros(0, int) for column, parts in found.items()}


def first_labels(dataset: Any, side: str) -> np.ndarray:
    """The place of the first token of each `<side>_ids` that is in the loss, (rows,) int64; -1 if none is."""
    found = []
    for batch in dataset.select_columns([f"{side}_loss_mask"]).with_format("arrow").iter(_BATCH):
        found += [mask.index(True) if True in mask else -1 for mask in batch[f"{side}_loss_mask"].to_pylist()]
    return np.array(found, np.int64)


def apply_overlong(
    dataset: Any,
    sides: tuple[str, ...],
    max_length: int,
    overlong: str,
    rows_before: int,
    end_is_cut: bool = True,
) -> tuple[Any, LengthReport]:
    """The dataset without the rows that must go, and the report.

    Args:
        dataset: tokenized rows, `prompt_ids` and `<side>_ids`, from which TRL removed prompts that fill `max_length`.
        overlong: "truncate" leaves the cutting to the collator, "drop" removes rows with a side that is too long,
            "error" raises a ValueError that counts them.
        rows_before: rows before TRL's tokenization.
        end_is_cut: the collator cuts the end of a row, and not its beginning.
    """
    columns = dataset.column_names
    contexts = [f"{side}_context" for side in sides if f"{side}_context" in columns]
    size = lengths(dataset, ["prompt_ids", *(f"{side}_ids" for side in sides)])
    over = np.stack([size["prompt_ids"] + size[f"{side}_ids"] > max_length for side in sides])
    if overlong == "error" and (over.any() or rows_before > len(dataset)):
        rows = int(over.any(0).sum()) + rows_before - len(dataset)
        raise ValueError(
            f"{rows} of {rows_before} rows are longer than max_length {max_length} and `overlong` is 'error': raise "
            "max_length, shorten the rows, or set `overlong: truncate` or `overlong: drop`."
        )
    keep = ~over.any(0) if overlong == "drop" else np.ones(len(dataset), bool)
    for column in contexts:  # a response that would be cut to nothing
        keep &= size["prompt_ids"] + np.array(dataset[column]) < max_length
    for side in sides if f"{sides[0]}_loss_mask" in columns and end_is_cut else ():  # nothing left to train on
        keep &= size["prompt_ids"] + first_labels(dataset, side) < max_length
    if not keep.all():
        dataset = dataset.select(np.flatnonzero(keep))
    cut = {side: int(over[i][keep].sum()) for i, side in enumerate(sides)}
    one_sided = int((over.any(0) & ~over.all(0))[keep].sum())
    return dataset, LengthReport(rows_before, rows_before - len(dataset), cut, one_sided)


def row_fits(row: dict[str, Any], sides: tuple[str, ...], max_length: int, overlong: str) -> bool:
    """True if a tokenized row of a stream stays under "drop"; under "error" a row that is too long stops the run."""
    longest = len(row["prompt_ids"]) + max(len(row[f"{side}_ids"]) for side in sides)
    if longest > max_length and overlong == "error":
        raise ValueError(
            f"A row of the stream has {longest} tokens, max_length is {max_length} and `overlong` is 'error': raise "
            "max_length, or set `overlong: truncate` or `overlong: drop`."
        )
    return longest <= max_length
