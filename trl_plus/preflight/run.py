"""A preflight: every row check over the rows of a recipe or dataset, then the checks of whole splits."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np

from trl_plus.data.conversion import LeftOut
from trl_plus.data.loading import RawData
from trl_plus.preflight.examine import Batch, examine
from trl_plus.preflight.findings import Example, Finding, Lengths, Result, Severity, Split
from trl_plus.preflight.registry import SUMMARY, Check, every_check
from trl_plus.preflight.source import Source, batches
from trl_plus.preflight.tally import Found, Summary, Tally, joined
from trl_plus.preflight.target import Target
from trl_plus.preflight.unused import unused_columns
from trl_plus.setup.trainer import nothing_to_evaluate
from trl_plus.ui.console import quiet_maps

COLUMNS_CODE, HELD_OUT_CODE, REFUSED_CODE = "D101", "D111", "D199"
PLAIN_CODE = "D413"  # stands before all other warnings: every row is trained on in the wrong form
_EMPTY = np.zeros(0, np.int64)
WORTH_PROCESSES = 5000  # rows from which starting processes, some seconds each, is worth it
Advance = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Extent:
    """How much is looked at.

    Attributes:
        rows: at most so many rows of each split; None for all.
        near: look for near duplicates.
        num_proc: processes that share the work.
        previews: rows that are shown as tokens.
    """

    rows: int | None = 5000
    near: bool = True
    num_proc: int = 1
    previews: int = 5


def preflight(source: Source, extent: Extent, advance: Advance | None = None) -> Result:
    """Look at the rows of a source.

    Args:
        advance: called with a split, the rows that are done, and how many there will be (None for a stream).
    """
    begun = time.perf_counter()
    result = Result(
        source=source.label,
        method=source.target.method,
        model=source.model,
        format=source.format,
        max_length=source.target.max_length,
        splits=[],
        findings=[],
        notes=list(source.raw.notes),
    )
    result.findings += left_out(source.raw)
    if source.raw.unused_splits:
        result.findings.append(_other_splits(source))
    unevaluated = nothing_to_evaluate(source.target.args, source.label) if _evaluates_nothing(source) else None
    if unevaluated is not None:
        result.findings.append(_whole(HELD_OUT_CODE, unevaluated, "eval"))
    if source.problem:
        result.findings.append(_whole(COLUMNS_CODE, source.problem))
        return result
    if source.images:
        result.notes.append("Rows with images are looked at as text only: their tokens depend on the images.")
    elif source.target.processor is None:
        result.notes.append("No model was named, so tokens were not checked: add --model, or name a recipe.")
    summary = None
    with quiet_maps():
        for name, dataset in source.splits():
            result.findings += unused_columns(name, dataset, replace(source.target.kind, images=False))
            summary = _one_split(name, dataset, source, extent, advance or _nothing, result, summary)
    result.findings.sort(
        key=lambda finding: (finding.severity.rank, finding.code != PLAIN_CODE, finding.code, finding.split)
    )
    result.seconds = time.perf_counter() - begun
    return result


def _evaluates_nothing(source: Source) -> bool:
    return source.raw.eval is None and source.target.args is not None


def _nothing(split: str, done: int, total: int | None) -> None:
    """Shows no progress."""


def _one_split(
    name: str, dataset: Any, source: Source, extent: Extent, advance: Advance, result: Result, train: Summary | None
) -> Summary:
    """Look at one split, and put what is found into the result."""
    parts, rows, scattered = batches(dataset, name, extent.rows, extent.previews)
    expected = rows if extent.rows is None or rows is None else min(rows, extent.rows)
    tally = Tally()
    if expected is not None and expected < WORTH_PROCESSES:
        extent = replace(extent, num_proc=1)
    for part in _examined(parts, source.target, extent):
        tally.merge(part)
        advance(name, tally.rows, expected)
    partial = scattered or (rows is None and tally.rows == extent.rows)
    text, tokens = joined(tally.text), joined(tally.tokens)
    summary = Summary(
        split=name,
        index=text.pop("index", _EMPTY),
        text=text,
        tokens=tokens,
        hits=tally.found,
        counts=dict(tally.counts),
        sampled=partial,
        scattered=scattered,
        streaming=rows is None,
        train=train,
    )
    result.findings += _findings(name, tally, summary, source.target)
    result.previews += tally.previews
    result.splits.append(split_statistics(Split(name, rows, tally.rows), summary, source.target))
    if partial:
        of = "the stream" if rows is None else f"{rows}"
        result.notes.append(f"{tally.rows} of {of} {name} rows were looked at; --all looks at all of them.")
    return summary


def _examined(parts: Iterator[Batch], target: Target, extent: Extent) -> Iterator[Tally]:
    if extent.num_proc == 1:
        for batch in parts:
            yield examine(batch, target, extent.near)
        return
    yield from examine_in_processes(parts, target, extent.near, extent.num_proc)


def _findings(split: str, tally: Tally, summary: Summary, target: Target) -> Iterator[Finding]:
    if tally.refused:
        yield _whole(REFUSED_CODE, tally.refused, split)
    checks = every_check()
    for code, found in tally.found.items():
        if found.count:
            yield _of_rows(code, split, found, _severity(checks[code], found, target))
    for code, check in SUMMARY.items():
        verdict = check.function(summary, target) if len(summary.index) else None
        if verdict is not None:
            severity = verdict.severity or check.severity
            found = Found(verdict.count, len(summary.index), list(verdict.examples))
            sentence = verdict.sentence or _sentence(found, check.title)
            yield Finding(code, severity, split, check.title, sentence, found.count, found.checked, check.cure,
                          verdict.examples)  # fmt: skip


def _severity(check: Check, found: Found, target: Target) -> Severity:
    """How grave a finding in rows is. Dropped rows are an error where the run refuses them, or has no others."""
    if check.code in ("D501", "D502") and (target.overlong == "error" or found.count == found.checked):
        return Severity.ERROR
    return check.severity_at(found.count / max(found.checked, 1))


def _of_rows(code: str, split: str, found: Found, severity: Severity) -> Finding:
    check = every_check()[code]
    sentence = _sentence(found, check.title)
    return Finding(code, severity, split, check.title, sentence, found.count, found.checked, check.cure,
                   tuple(found.examples))  # fmt: skip


def _sentence(found: Found, title: str) -> str:
    parts = ", ".join(f"{name} {count}" for name, count in found.parts.items())
    share = found.count / max(found.checked, 1)
    of = f"{found.count} of {found.checked} rows ({share:.1%})"
    return f"{of}: {title}{f' ({parts})' if parts else ''}."


def _whole(code: str, sentence: str, split: str = "train") -> Finding:
    title, cure = REFUSALS[code]
    return Finding(code, Severity.ERROR, split, title, sentence, 0, 0, cure)


OTHER_SPLITS = (
    "D116",
    "the data has splits that are not used",
    "Nothing has to be done; another one is named by `dataset_train_split` or `dataset_test_split`.",
)


def _other_splits(source: Source) -> Finding:
    request, (code, title, cure) = source.raw.request, OTHER_SPLITS
    held_out = f" and `{request.test_split}` held out" if request.test_split_required else ""
    sentence = f"`{request.train_split}` is trained on{held_out}, not {', '.join(source.raw.unused_splits)}."
    return Finding(code, Severity.INFO, "train", title, sentence, 0, 0, cure)


REFUSALS = {
    COLUMNS_CODE: (
        "the columns are not those that the method needs",
        "Name the format of the data with `converter`, or its columns with `columns`.",
    ),
    HELD_OUT_CODE: (
        "there are no held-out rows for `eval_strategy`",
        "Hold some out with `eval_fraction`, name others with `eval_dataset_name`, or remove `eval_strategy`.",
    ),
    REFUSED_CODE: (
        "the trainer refuses the rows",
        "Change the rows or the key that this sentence names; `train` stops with it.",
    ),
}


LEFT_OUT, RARE = "D110", 0.1  # up to this share it is only INFO: ties between scored answers are left out by design
# -- D110: rows that a converter has left out, so that no other check sees them -------------------------------------


TITLE = "the converter leaves the row out"
CURE = "Look at the reasons: fix these rows, or choose the converter by the rows shown in docs/data.md."


def left_out(raw: RawData) -> list[Finding]:
    """A finding for each table of which a converter has left out rows. Of a stream they are named in the log."""
    return [_finding(note, "eval" if note.name == raw.eval_name else "train") for note in raw.notes
            if isinstance(note, LeftOut)]  # fmt: skip


def _finding(note: LeftOut, split: str) -> Finding:
    share = note.rows / note.of
    severity = Severity.WARNING if share > RARE else Severity.INFO
    sentence = f"{note.rows} of {note.of} rows ({share:.1%}) of {note.name}: {TITLE}."
    examples = tuple(Example(row, reason) for row, reason in note.first.items())
    return Finding(LEFT_OUT, severity, split, TITLE, sentence, note.rows, note.of, CURE, examples)


_BINS, _POINTS = 40, 1000
# -- lengths and labels of a split, for the table and the page ------------------------------------------------------


_QUANTILES = (0.5, 0.9, 0.99, 1.0)


def split_statistics(split: Split, summary: Summary, target: Target) -> Split:
    """The split with its statistics."""
    labels = summary.text.get("label")
    counts = None if labels is None else {"true": int(labels.sum()), "false": int((~labels).sum())}
    tokens, split = summary.tokens, replace(split, shortcut=summary.shortcut)
    if not tokens:
        return replace(split, labels=counts)
    sides = [side for side in target.sides if side in tokens]
    points: list[tuple[int, int]] = []
    if len(sides) == 2:
        step = max(1, len(tokens["chosen"]) // _POINTS)
        points = list(zip(tokens["chosen"][::step].tolist(), tokens["rejected"][::step].tolist(), strict=True))[
            :_POINTS
        ]
    return replace(
        split,
        lengths=[lengths_of(part, tokens[part]) for part in ("prompt", *sides)],
        differences=points,
        labels=counts,
        dropped=int(tokens["dropped"].sum()),
        cut={side: int((tokens[f"{side}_over"] > 0).sum()) for side in sides},
    )


def lengths_of(part: str, values: np.ndarray) -> Lengths:
    """Histogram and quantiles of lengths in tokens."""
    top = int(values.max()) if len(values) else 0
    edges = np.unique(np.linspace(0, top + 1, min(_BINS, top + 1) + 1).round().astype(int))
    counts, _ = np.histogram(values, edges)
    quantiles = (
        {f"{q:g}": float(np.quantile(values, q, method="inverted_cdf")) for q in _QUANTILES} if len(values) else {}
    )
    return Lengths(part, edges.tolist(), counts.tolist(), quantiles, float(values.mean()) if len(values) else 0.0)


# -- batches of rows examined in several processes, in order --------------------------------------------------------


_AHEAD = 2  # batches per process that are read before one is finished: memory stays bounded
_of_this_process: dict[str, Target] = {}


def _begin(target: Target) -> None:
    _of_this_process["target"] = target


def _examine(batch: Batch, near: bool) -> Tally:
    with quiet_maps():
        return examine(batch, _of_this_process["target"], near)


def examine_in_processes(parts: Iterator[Batch], target: Target, near: bool, processes: int) -> Iterator[Tally]:
    """`examine` of each batch, in the order of the batches.

    Processes are spawned: a fork would take over the threads of torch and of the tokenizers in an unknown state.
    """
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(target,)) as pool:
        running: deque[Future[Tally]] = deque()
        for batch in parts:
            running.append(pool.submit(_examine, batch, near))
            if len(running) >= _AHEAD * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
