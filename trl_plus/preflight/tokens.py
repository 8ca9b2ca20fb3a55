"""Rows as token ids, made by the trainer's own code, and what `max_length` does to them."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_plus.data.spans import LOSS_MASK, Selection, SpanFault, loss_masks
from trl_plus.preflight.rows import ROW, Row
from trl_plus.preflight.target import Target

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """Lists of token ids of different lengths, as one array.

    Attributes:
        values: all ids, one list after the other.
        starts: where each list begins, and the end of the last: one more than there are lists.
    """

    values: Ints
    starts: Ints

    @classmethod
    def of(cls, column: Any) -> "Ragged":
        """From an Arrow column of lists."""
        import pyarrow as pa

        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        offsets = array.offsets.to_numpy().astype(np.int64)
        return cls(
            array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]].astype(np.int64), offsets - offsets[0]
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    def count(self, ids: Sequence[int], skip: Ints | None = None) -> Ints:
        """How many of each list's ids, without its first `skip` ones, are among `ids`."""
        hit = np.concatenate([[0], np.cumsum(np.isin(self.values, list(ids)))])
        first = self.starts[:-1] + (0 if skip is None else np.minimum(skip, self.lengths))
        return hit[self.starts[1:]] - hit[first]

    def tail_has(self, ids: Sequence[int], width: int) -> Bools:
        """True if any of each list's last `width` ids is among `ids`."""
        skip = np.maximum(self.lengths - width, 0)
        return self.count(ids, skip) > 0

    def ends_with(self, ids: Sequence[int]) -> Bools:
        """True if each list ends with exactly these ids."""
        if not len(ids):
            return np.ones(len(self), bool)
        found = self.lengths >= len(ids)
        padded = np.concatenate([np.full(len(ids), -1), self.values])  # a list's last ids, for short ones too
        for place, token in enumerate(ids):
            found = found & (padded[self.starts[1:] + place] == token)
        return found


@dataclass
class TokenRows:
    """A batch of rows as the trainer gets them, before the collator cuts them.

    Attributes:
        index: row of the source, for each token row; a pair that became two completions stands there twice.
        prompt, sides: token ids.
        context: leading ids of each side that are earlier turns and not the response.
        loss: for each token of each side, 1 if it is in the loss; empty if all but `context` are.
        dropped: rows that `max_length` or `overlong` removes.
        rows: the same rows as text.
        label: of completions; None for pairs.
    """

    index: Ints
    prompt: Ragged
    sides: dict[str, Ragged]
    context: dict[str, Ints]
    dropped: Bools
    rows: list[Row]
    label: Bools | None = None
    max_length: int | None = None
    failed: dict[int, str] = field(default_factory=dict)  # rows that the template refuses: index -> its message
    unplaced: dict[int, str] = field(default_factory=dict)  # rows in which `train_on` and `mask` find no place
    loss: dict[str, Ragged] = field(default_factory=dict)

    def over(self, side: str) -> Ints:
        """Tokens of prompt and side beyond `max_length`, 0 where none are."""
        if self.max_length is None:
            return np.zeros(len(self.index), np.int64)
        return np.maximum(self.prompt.lengths + self.sides[side].lengths - self.max_length, 0)

    def response_lengths(self, side: str) -> Ints:
        """Tokens of a side that are in the loss."""
        if side in self.loss:
            return self.loss[side].count([1])
        return self.sides[side].lengths - self.context[side]

    def in_loss(self, side: str, place: int) -> Bools:
        """For each token of a side of a row, whether it is in the loss."""
        if side in self.loss:
            return self.loss[side][place].astype(bool)
        return np.arange(len(self.sides[side][place])) >= self.context[side][place]


def tokenize(dataset: Any, rows: list[Row], target: Target) -> TokenRows:
    """Rows as the trainer would make them, the ones that it would drop included and marked.

    Args:
        dataset: prepared rows with a column `ROW`.
        rows: the same rows as text, in the same order.
    """
    failed: dict[int, str] = {}
    unplaced: dict[int, str] = {}
    try:
        kept = _as_trained(dataset, target)
    except Exception:  # a chat template may raise anything for a single row: find the rows, go on with the others
        failed = _refused(rows, target)
        dataset = dataset.select([i for i, row in enumerate(dataset[ROW]) if row not in failed])
        if not Selection.of(target.args).whole_response:
            unplaced = _unplaced(dataset, target)
        if not failed and not unplaced:
            raise
        dataset = dataset.select([i for i, row in enumerate(dataset[ROW]) if row not in unplaced])
        kept = _as_trained(dataset, target) if len(dataset) else None
    return replace(_token_rows(dataset, kept, rows, target, failed), unplaced=unplaced)


def _as_trained(dataset: Any, target: Target) -> Any | None:
    """The trainer's own rows; None where not one of them is left."""
    from trl_plus.errors import NoRowLeft

    try:
        return _trainer_rows(dataset, target, max_length=target.max_length)
    except NoRowLeft:
        return None


def _trainer_rows(dataset: Any, target: Target, max_length: int | None) -> Any:
    return trainer_rows(dataset, target.args, target.processor, max_length, target.paired_method)


def trainer_rows(dataset: Any, args: Any, processor: Any, max_length: int | None, paired: bool | None = None) -> Any:
    """Prepared rows as a trainer makes them, but none is refused: rows that are too long are dropped, and what is wrong
    with the others is a finding."""
    from trl_plus.data.refusals import unchecked
    from trl_plus.trainers.rows import tokenize

    args = copy.copy(args)
    args.max_length = max_length
    args.dataset_num_proc = None
    args.train_sampling_strategy = "random"  # no column of lengths
    if getattr(args, "overlong", None) == "error":
        args.overlong = "drop"  # what would stop the run is marked instead
    with unchecked():
        return tokenize(args, processor, dataset, paired=paired)


def _refused(rows: list[Row], target: Target) -> dict[int, str]:
    """Rows that the chat template refuses, and why."""
    from trl_plus.data.templates import tokenize_messages

    failed = {}
    for row in rows:
        kwargs = target.arguments(row.raw)
        try:
            tokenize_messages(target.processor, row.turns, add_generation_prompt=True, **kwargs)
            for side, context in row.context.items():
                tokenize_messages(target.processor, [*context, row.last_message(side)], **kwargs)
        except Exception as error:  # see `tokenize`
            failed[row.index] = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return failed


def _unplaced(dataset: Any, target: Target) -> dict[int, str]:
    """Rows whose turns or spans `train_on` and `mask` cannot locate, and why."""
    whole = copy.copy(target.args)
    whole.mask, selection = None, Selection.of(target.args)
    if not selection.keeps_turns:
        whole.train_on = "last"
    else:  # keeps the turns, and locates none
        whole.train_on = "completion"
    if not len(dataset):
        return {}
    found: dict[int, str] = {}
    for row in _trainer_rows(dataset, replace(target, args=whole), max_length=None):
        try:
            loss_masks(row, target.sides, target.processor, selection)
        except SpanFault as fault:
            found.setdefault(row[ROW], str(fault))
    return found


def _token_rows(dataset: Any, kept: Any | None, rows: list[Row], target: Target, failed: dict[int, str]) -> TokenRows:
    import pyarrow as pa

    left = None if kept is None else _table(kept, target)
    parts = [part for part in (left, _dropped(dataset, left, rows, target)) if part is not None]
    table = pa.concat_tables(parts) if parts else None
    by_index = {row.index: row for row in rows}
    index = np.array(table.column(ROW).to_pylist() if table else [], np.int64)
    columns = {name: Ragged.of(table.column(f"{name}_ids")) for name in ("prompt", *target.sides)} if table else {
        name: Ragged(np.zeros(0, np.int64), np.zeros(1, np.int64)) for name in ("prompt", *target.sides)
    }  # fmt: skip
    names = table.column_names if table else []
    context = {
        side: table.column(f"{side}_context").to_numpy().astype(np.int64)
        if f"{side}_context" in names
        else np.zeros(len(index), np.int64)
        for side in target.sides
    }
    return TokenRows(
        index=index,
        prompt=columns.pop("prompt"),
        sides=columns,
        context=context,
        dropped=np.arange(len(index)) >= (0 if left is None else len(left)),
        rows=[by_index[i] for i in index.tolist()],
        label=np.array(table.column("label").to_pylist(), bool) if "label" in names else None,
        max_length=target.max_length,
        failed=failed,
        loss={
            side: Ragged.of(table.column(f"{side}{LOSS_MASK}"))
            for side in target.sides
            if f"{side}{LOSS_MASK}" in names
        },
    )


def _dropped(dataset: Any, left: Any | None, rows: list[Row], target: Target) -> Any | None:
    """The token rows that the trainer made of the dataset and dropped; None where there are none.

    Of a pair that became two completions, one may be dropped and the other left.
    """
    completions = 2 if rows[0].paired and not target.paired_method else 1
    keys = Counter() if left is None else Counter(left.column(ROW).to_pylist())
    gone = [i for i, row in enumerate(dataset[ROW]) if keys[row] < completions] if len(dataset) else []
    if not gone:
        return None
    table = _table(_trainer_rows(dataset.select(gone), target, max_length=None), target)
    if left is None or completions == 1:
        return table
    stayed = set(_sides(left))
    return table.filter([side not in stayed for side in _sides(table)])


def _sides(table: Any) -> Iterable[tuple[int, bool]]:
    return zip(table.column(ROW).to_pylist(), table.column("label").to_pylist(), strict=True)


def _table(dataset: Any, target: Target) -> Any:
    wanted = [
        ROW,
        "prompt_ids",
        "label",
        *(f"{side}_{what}" for side in target.sides for what in ("ids", "context", "loss_mask")),
    ]
    known = [name for name in wanted if name in dataset.column_names]
    table = dataset.select_columns(known).with_format("arrow")[:]
    for side in target.sides:  # marked only where some row of its batch has earlier turns
        if f"{side}_context" not in known:
            import pyarrow as pa

            table = table.append_column(f"{side}_context", pa.array([0] * len(table), pa.int64()))
    return table.select([name for name in wanted if name in table.column_names])
