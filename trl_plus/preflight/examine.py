"""One batch of rows through all row checks: raw rows, then text, then the trainer's tokens."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from trl_plus.data.formats import prepare
from trl_plus.data.surface import read_responses
from trl_plus.data.token_ids import no_row, unknown_token
from trl_plus.errors import DataError
from trl_plus.preflight import checks  # noqa: F401  (registers them)
from trl_plus.preflight.checks.content import SCORES, as_number
from trl_plus.preflight.checks.duplicates import sketch
from trl_plus.preflight.checks.shape import conversations
from trl_plus.preflight.findings import EXAMPLES
from trl_plus.preflight.preview import preview_rows
from trl_plus.preflight.registry import CONVERSATION, SHAPE, TEXT, TOKENS
from trl_plus.preflight.rows import ROW, SOURCE, Row, excerpt, message_text, read_row
from trl_plus.preflight.tally import Tally
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows, tokenize


@dataclass(frozen=True)
class Batch:
    """Some raw rows of a split. `features` are those of the whole dataset, where they are known."""

    split: str
    rows: list[dict[str, Any]]
    features: Any = None
    previews: int = 0


def examine(batch: Batch, target: Target, near: bool = True) -> Tally:
    """Results of the row checks on a batch, and what is kept of it for the checks of the whole split.

    Args:
        near: keep sketches, by which near duplicates are found.
    """
    tally = Tally(rows=len(batch.rows))
    raw = [row for row in batch.rows if not _misshapen(row, target, tally)]
    rows = [read_row(row, row[ROW], target.kind) for row in raw]
    for row in rows:
        for code, check in TEXT.items():
            detail = check.function(row)
            if detail is not None:
                tally.of(code).add(target.example(row.raw, detail))
    for code in TEXT:
        tally.of(code).checked += len(rows)
    _keep_texts(rows, batch.split, tally, near)
    if target.processor is not None and rows:
        _examine_tokens(batch, raw, rows, target, tally)
    return tally


def _misshapen(row: dict[str, Any], target: Target, tally: Tally) -> bool:
    details = {code: check.function(row, target.kind) for code, check in SHAPE.items()}
    if target.kind.conversational and not any(details.values()):
        whole = conversations(row, target.kind)
        details |= {code: check.function(whole) for code, check in CONVERSATION.items()}
    for code, detail in details.items():
        found = tally.of(code)
        found.checked += 1
        if detail is not None:
            found.add(target.example(row, detail))
    return any(detail is not None for detail in details.values())


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _asked(row: Row, split: str) -> str:
    """The prompt as rows are compared by it; images are not compared, so a row with some is like no other."""
    return f"{row.prompt}\n{split} {row.source_row}" if row.images else row.prompt


def _keep_texts(rows: list[Row], split: str, tally: Tally, near: bool) -> None:
    if not rows:
        return
    sides = list(rows[0].responses)
    values: dict[str, Any] = {
        "index": [row.source_row for row in rows],
        "prompt": [_key(_asked(row, split)) for row in rows],
    }
    answers = [row.answers() for row in rows]
    for place, side in enumerate(sides):
        # after its own history, where that differs
        values[side] = [_key(f"{row.context.get(side)}{said[place]}") for row, said in zip(rows, answers, strict=True)]
        values[f"{side}_size"] = [len(row.responses[side]) for row in rows]
    arrays = {
        name: np.array(value, np.int64 if name.endswith("_size") or name == "index" else np.uint64)
        for name, value in values.items()
    }
    arrays["row"] = arrays["prompt"].copy()
    for place, side in enumerate(sides, start=1):
        arrays["row"] = arrays["row"] * np.uint64(0x9E3779B97F4A7C15) + arrays[side] * np.uint64(2 * place + 1)
    if SOURCE in rows[0].raw:
        arrays["source"] = np.array([row.raw[SOURCE] for row in rows], np.int64)
    if not rows[0].paired:
        arrays["label"] = np.array([row.label for row in rows], bool)
        arrays["row"] += arrays["label"].astype(np.uint64)
    if near:
        arrays["sketch"] = sketch(
            [(_asked(row, split), "\n".join(said)) for row, said in zip(rows, answers, strict=True)]
        )
    tally.keep(tally.text, arrays | _surface(rows, sides))
    for row in rows:
        tally.counts["weightless"] += row.raw.get("weight") == 0
        tally.counts["scored"] += any(
            as_number(row.raw.get(a)) is not None and as_number(row.raw.get(b)) is not None for a, b in SCORES
        )
        if row.paired:
            chosen, rejected = _is_poor(row.chosen), _is_poor(row.rejected)
            tally.counts["chosen_poor"] += chosen and not rejected
            tally.counts["rejected_poor"] += rejected and not chosen


def _surface(rows: list[Row], sides: list[str]) -> dict[str, np.ndarray]:
    """Of each response what a shortcut may be made of, (N, sides, ...), and what its row weighs."""
    asked = [message_text(row.turns[-1]) if row.turns else row.prompt for row in rows]
    said = [[row.said(side) for row in rows] for side in sides]
    weights = [row.raw.get("weight") for row in rows]
    measured, keys = read_responses(said, asked)
    return {
        "position": np.array([row.index for row in rows], np.int64),
        "surface": measured.astype(np.float16),
        "stock": keys,
        "weight": np.array([1.0 if weight is None else float(weight) for weight in weights]),
    }


def _is_poor(text: str) -> bool:
    """True if a response repeats itself. Breaking off is no sign of it: lists, code and names end without a stop."""
    words = text.split()
    return len(words) >= 30 and len(set(words)) < 0.25 * len(words)


def tokenized(batch: Batch, target: Target) -> TokenRows:
    """The well-formed rows of a batch as the trainer gets them."""
    raw = [row for row in batch.rows if not _misshapen(row, target, Tally())]
    return _tokenized(batch, raw, [read_row(row, row[ROW], target.kind) for row in raw], target)


def _tokenized(batch: Batch, raw: list[dict[str, Any]], rows: list[Row], target: Target) -> TokenRows:
    from datasets import Dataset

    dataset = Dataset.from_list(raw, features=batch.features)
    if "weight" in dataset.column_names:  # that all of a batch are 0 says nothing of the others
        dataset = dataset.remove_columns("weight")
    dataset, _, _ = prepare(dataset, f"the {batch.split} rows", target.paired_method)
    return tokenize(dataset, rows, target)


def _examine_tokens(batch: Batch, raw: list[dict[str, Any]], rows: list[Row], target: Target, tally: Tally) -> None:
    try:
        tokens = _tokenized(batch, raw, rows, target)
    except Exception as error:  # what no check foresaw: the trainer would fail with the same words
        tally.refused = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return
    by_index = {row.index: row for row in rows}
    for index, message in tokens.failed.items():
        tally.of("D410").add(target.example(by_index[index].raw, excerpt(message)))
    tally.of("D410").checked += len(rows)
    if not len(tokens.index):
        return
    _refuse_unknown_tokens(tokens, target, batch.split)
    for code, check in TOKENS.items():
        hits = check.function(tokens, target)
        if hits is None:
            continue
        found = tally.of(code)
        found.checked += len(tokens.index)
        found.parts.update(hits.parts)
        places = np.flatnonzero(hits.mask)
        for place in places[np.argsort(tokens.index[places], kind="stable")]:  # dropped rows stand at the end
            if len(found.examples) < EXAMPLES:
                found.add(target.example(tokens.rows[place].raw, hits.detail(int(place))))
            else:
                found.count += 1
    _keep_tokens(tokens, tally)
    tally.previews = preview_rows(tokens, target, batch.split, batch.previews)


def _refuse_unknown_tokens(tokens: TokenRows, target: Target, split: str) -> None:
    """Raises a DataError for a token that the model has no row for: no row of the split could be trained with it."""
    for side, ids in {"prompt": tokens.prompt, **tokens.sides}.items():
        rows = target.vocabulary.rows_for(f"{side}_ids") if target.vocabulary is not None else None
        place = unknown_token(ids.values, rows)
        if place is not None and rows is not None:
            row = tokens.rows[int(np.searchsorted(ids.starts, place, side="right")) - 1].source_row
            raise DataError(f"Row {row} of {split} holds {no_row(int(ids.values[place]), rows, target.tokenizer)}")


def _keep_tokens(tokens: TokenRows, tally: Tally) -> None:
    values: dict[str, np.ndarray] = {"prompt": tokens.prompt.lengths, "dropped": tokens.dropped}
    values["position"] = tokens.index
    values |= {side: tokens.response_lengths(side) for side in tokens.sides}
    values |= {f"{side}_over": tokens.over(side) * ~tokens.dropped for side in tokens.sides}
    if tokens.label is not None:
        values["label"] = tokens.label
    tally.keep(tally.tokens, values)
