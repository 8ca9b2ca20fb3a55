"""Held-out rows as the trainer makes and batches them, and what else an evaluation asks of a row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_plus.data.collators import RowExtras
from trl_plus.data.digests import held_out_digest
from trl_plus.data.loading import load
from trl_plus.errors import DataError
from trl_plus.evaluation.statistics import Floats, Ints
from trl_plus.setup.objects import RunObjects
from trl_plus.setup.trainer import check_data
from trl_plus.ui.console import quiet_maps

ROW = "_row"  # column with a row's number in its source; beside it, in a mixture, the number of its entry
_ENTRY = f"{ROW}_source"
SOURCE = "source"  # the column that tells sources apart, unless another is named


@dataclass(frozen=True)
class HeldOut:
    """N tokenized rows and their C completions: (chosen of all rows, then rejected of all) of pairs, or the rows.

    Attributes:
        rows: the trainer's evaluation set, in its order.
        labels: (C,), the preferred or desirable completions.
        weights: (C,), the column `weight`, or ones.
        prompts: (C,), completions of one number share a prompt.
        sources: (C,), names; None if the data has no sources.
        pairs: (P, 2), indices of completions to compare, the better one first.
        source_column: what `sources` is taken from.
        digest: of the rows before tokenization (`data.digests`); None if it is not needed.
        dropped: completions that `max_length` or `overlong` removed, counted in rows of the trainer.
        train: the prepared training rows of the recipe; None for pairs that were given.
    """

    rows: Any
    collate: RowExtras
    paired: bool
    labels: NDArray[np.bool_]
    weights: Floats
    prompts: Ints
    sources: NDArray[np.str_] | None
    source_column: str | None
    pairs: Ints
    dropped: int
    digest: str | None = None
    train: Any = None

    def batches(self, size: int) -> Iterator[tuple[Ints, dict[str, Any]]]:
        """The trainer's evaluation batches: indices of the completions, and tensors."""
        for start in range(0, len(self.rows), size):
            index = np.arange(start, min(start + size, len(self.rows)))
            batch = self.collate([self.rows[int(i)] for i in index])
            yield np.concatenate([index, index + len(self.rows)]) if self.paired else index, batch


def held_out_rows(objects: RunObjects, processor: Any, rows: int | None, by: str | None) -> HeldOut:
    """Load and tokenize the held-out rows of a recipe.

    Args:
        rows: at most so many, drawn with the recipe's seed; None for the recipe's `max_eval_rows`, -1 for
            all of them.
        by: column that tells sources apart.

    Raises:
        DataError: nothing is held out, no row is left, or there is no such column.
    """
    from trl_plus.trainers.rows import tokenize

    found, train = _load(objects, processor, rows)
    try:
        with quiet_maps():
            tokenized = tokenize(objects.args, processor, found, "eval")
    except ValueError as error:
        raise DataError(str(error)) from error
    twice = not objects.recipe.method.paired and "chosen" in found.column_names
    dropped = len(found) * (2 if twice else 1) - len(tokenized)
    described = _described(tokenized, objects, processor, by, dropped)
    return replace(described, digest=held_out_digest(found), train=train)


def _load(objects: RunObjects, processor: Any, rows: int | None) -> tuple[Any, Any]:
    """The held-out rows and the training rows."""
    request = replace(objects.data, row_column=ROW, balance=False)  # which weighs training rows only
    if rows is not None and request.max_eval_rows != 0:
        request = replace(request, max_eval_rows=None if rows < 0 else rows)
    with quiet_maps():
        data = load(request)
    if data.eval is None:
        why = "max_eval_rows is 0" if request.max_eval_rows == 0 else f"{request.label} has no test split"
        raise DataError(
            f"No rows are held out, since {why}: name some with eval_dataset_name=NAME max_eval_rows=null. Rows that "
            "the run was trained on tell nothing."
        )
    check_data(objects, data, processor)
    held_out = data.eval
    if not hasattr(held_out, "__len__"):
        if request.max_eval_rows is None:
            raise DataError("Held-out rows that are streamed have no end that is known: give a number with --rows.")
        from datasets import Dataset

        held_out = Dataset.from_list(list(held_out))
    if {"image", "images"} & set(held_out.column_names):
        raise DataError("Rows with images are not evaluated here: use `trainer.evaluate()` of the run's trainer.")
    return held_out, data.train


def _described(rows: Any, objects: RunObjects, processor: Any, by: str | None, dropped: int) -> HeldOut:
    paired = objects.recipe.method.paired
    copies = 2 if paired else 1  # completions of a row
    count, columns = len(rows), rows.column_names
    labels = np.repeat([True, False], count) if paired else np.array(rows["label"][:], bool)
    weights = np.array(rows["weight"][:], float) if "weight" in columns else np.ones(count)
    prompts = _numbered([tuple(ids) for ids in rows["prompt_ids"]])
    sources, source_column = _sources(rows, objects, by)
    return HeldOut(
        rows=rows,
        collate=_collator(objects, processor, paired),
        paired=paired,
        labels=labels,
        weights=np.tile(weights, copies),
        prompts=np.tile(prompts, copies),
        sources=None if sources is None else np.tile(sources, copies),
        source_column=source_column,
        pairs=np.stack([np.arange(count), np.arange(count) + count], 1) if paired else _pairs(rows, labels, prompts),
        dropped=dropped,
    )


def pairs_of(rows: list[dict[str, Any]], objects: RunObjects, processor: Any) -> HeldOut:
    """Pairs that were tokenized before, each of weight 1 and with a prompt of its own, whatever the recipe's method.

    Args:
        rows: `prompt_ids`, `chosen_ids`, `rejected_ids` and what else the trainer's collator reads.
    """
    count = np.arange(len(rows))
    return HeldOut(
        rows=rows,
        collate=_collator(objects, processor, paired=True),
        paired=True,
        labels=np.repeat([True, False], len(rows)),
        weights=np.ones(2 * len(rows)),
        prompts=np.tile(count, 2),
        sources=None,
        source_column=None,
        pairs=np.stack([count, count + len(rows)], 1),
        dropped=0,
    )


def _sources(rows: Any, objects: RunObjects, by: str | None) -> tuple[NDArray[np.str_] | None, str | None]:
    if by is not None and by not in rows.column_names:
        shown = ", ".join(_own_columns(rows))
        raise DataError(f"--by {by}: the held-out rows have no such column; they have {shown}.")
    if by is None and _ENTRY in rows.column_names:
        names = [str(entry["path"]) for entry in objects.data.mixture]
        return np.array([names[i] for i in rows[_ENTRY]]), "datasets"
    column = by or SOURCE
    if column not in rows.column_names:
        return None, None
    return np.array([str(value) for value in rows[column]]), column


def _own_columns(rows: Any) -> list[str]:
    """The columns of the data itself, without those that tokenization and numbering add."""
    return [name for name in rows.column_names if not name.startswith("_") and not name.endswith("_ids")]


def _pairs(rows: Any, labels: NDArray[np.bool_], prompts: Ints) -> Ints:
    """Of single rows: the two sides of a pair that was taken apart, else every desirable with every undesirable one
    of the same prompt."""
    numbers = list(zip(rows[_ENTRY], rows[ROW], strict=True)) if _ENTRY in rows.column_names else list(rows[ROW])
    apart = len(set(numbers)) < len(numbers)  # one row of the source stands for several
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for index, key in enumerate(_numbered(numbers) if apart else prompts):
        groups.setdefault(int(key), ([], []))[0 if labels[index] else 1].append(index)
    found = [(good, bad) for goods, bads in groups.values() for good in goods for bad in bads]
    return np.array(found, np.int64).reshape(-1, 2)


def _numbered(keys: list[Any]) -> Ints:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _collator(objects: RunObjects, processor: Any, paired: bool) -> RowExtras:
    """The trainer's own."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    args = objects.args
    tokenizer = getattr(processor, "tokenizer", processor)
    pad_token = getattr(args, "pad_token", None) or tokenizer.pad_token or tokenizer.eos_token
    options = {
        "pad_token_id": tokenizer.convert_tokens_to_ids(pad_token),
        "max_length": args.max_length,
        "pad_to_multiple_of": args.pad_to_multiple_of,
    }
    if paired:
        mode = getattr(args, "truncation_mode", "keep_start")
        collator = DataCollatorForPreference(truncation_mode=mode, **options)
    else:
        collator = DataCollatorForUnpairedPreference(**options)
    return RowExtras(collator, args.length_column_name)
