"""D6xx: rows that say the same, or the opposite, of other rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trl_plus.preflight.findings import EXAMPLES, Example
from trl_plus.preflight.registry import INFO, WARNING, summary_check
from trl_plus.preflight.rows import SOURCE, SOURCE_ROW
from trl_plus.preflight.tally import Summary, Verdict
from trl_plus.preflight.target import Target


def earlier(keys: np.ndarray) -> np.ndarray:
    """For each key the position of its first occurrence: its own, if it is the first."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return first[which.ravel()]


def _contents(text: dict[str, np.ndarray]) -> np.ndarray:
    """A key of each row's prompt and responses, alike for both orders of the sides and for both labels."""
    sides = text["chosen"] + text["rejected"] if "chosen" in text else text["completion"]
    return text["prompt"] ^ sides


def _alike(summary: Summary, target: Target, again: np.ndarray, first: np.ndarray) -> list[Example]:
    return [target.example(summary.row(i), f"as {_name(summary, target, first[i])}") for i in again[:EXAMPLES]]


def _name(summary: Summary, target: Target, place: int) -> str:
    """A row as another row's example names it."""
    row = summary.row(place)
    return f"row {row[SOURCE_ROW]}" + (f" of {target.sources[row[SOURCE]]}" if SOURCE in row else "")


@summary_check(
    "D601",
    WARNING,
    "a row is the same as an earlier one",
    "Remove the repetitions: each counts as often as it stands there, and held-out rows may be among them.",
)
def exact_duplicates(summary: Summary, target: Target) -> Verdict | None:
    first = earlier(summary.text["row"])
    again = np.flatnonzero(first != np.arange(len(first)))
    if not len(again):
        return None
    return Verdict.of_rows(len(again), summary, _alike(summary, target, again, first))


@summary_check(
    "D602",
    INFO,
    "a row is nearly the same as an earlier one",
    "Look at them, and keep one of each.",
)
def nearly_duplicates(summary: Summary, target: Target) -> Verdict | None:
    if "sketch" not in summary.text:
        return None
    first = near_duplicates(summary.text["sketch"])
    contents = _contents(summary.text)  # the very same ones are a duplicate or a contradiction, found by other checks
    again = np.flatnonzero((first != np.arange(len(first))) & (earlier(contents) == np.arange(len(first))))
    if not len(again):
        return None
    return Verdict.of_rows(len(again), summary, _alike(summary, target, again, first))


@summary_check(
    "D603",
    WARNING,
    "another row prefers the opposite for the same prompt",
    "Decide which one is right, and remove the other: the two pull in opposite directions.",
)
def contradictions(summary: Summary, target: Target) -> Verdict | None:
    text = summary.text
    if "chosen" in text:
        same = text["chosen"] == text["rejected"]
        opposite = text["chosen"] > text["rejected"]
    else:
        same, opposite = np.zeros(len(summary.index), bool), text["label"]
    key = _contents(text)
    positions = np.flatnonzero(~same)
    order = positions[np.argsort(key[positions], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(key[order].astype(np.uint64)) != 0) + 1) if len(order) else []
    found = [group for group in groups if len(group) > 1 and 0 < opposite[group].sum() < len(group)]
    if not found:
        return None
    partner = {int(a): int(next(b for b in group if opposite[b] != opposite[a])) for group in found for a in group}
    rows = sorted(partner)
    examples = [
        target.example(summary.row(i), f"against {_name(summary, target, partner[i])}") for i in rows[:EXAMPLES]
    ]
    return Verdict.of_rows(len(rows), summary, examples)


@summary_check(
    "D604",
    WARNING,
    "a held-out row has a prompt that is trained on",
    "Split the data by prompt: held-out figures of these rows say what was memorised.",
)
def overlap(summary: Summary, target: Target) -> Verdict | None:
    if summary.split == "train" or summary.train is None:
        return None
    known, where = np.unique(summary.train.text["prompt"], return_index=True)
    if not len(known):
        return None
    place = np.minimum(np.searchsorted(known, summary.text["prompt"]), len(known) - 1)
    again = np.flatnonzero(known[place] == summary.text["prompt"])
    if not len(again):
        return None
    known_as = [_name(summary.train, target, where[place[i]]) for i in again[:EXAMPLES]]
    examples = [
        target.example(summary.row(i), f"as {name} of train")
        for i, name in zip(again[:EXAMPLES], known_as, strict=True)
    ]
    return Verdict.of_rows(len(again), summary, examples)


@summary_check(
    "D605",
    WARNING,
    "the columns `chosen` and `rejected` may be swapped",
    "Look at a few rows with `trl-plus preview`; if they are swapped, rename the columns.",
)
def swapped_columns(summary: Summary, target: Target) -> Verdict | None:
    scored, contradicting = summary.counts.get("scored", 0), summary.hits.get("D305")
    if scored >= 10 and contradicting is not None and contradicting.count > 0.8 * scored:
        return Verdict(f"The scores say so in {contradicting.count} of {scored} rows that have scores.")
    chosen, rejected = summary.counts.get("chosen_poor", 0), summary.counts.get("rejected_poor", 0)
    if chosen >= 20 and chosen > 4 * rejected:
        return Verdict(
            f"In {chosen} rows only the chosen response repeats itself endlessly, in {rejected} only the rejected one."
        )
    return None


# -- near duplicates by MinHash (Broder 1997), in time linear in the number of rows ---------------------------------
#
# A row has two sketches, one of its prompt and one of its responses; it is nearly another row if both are nearly alike.
# Rows that agree in a band of the sketches are compared with the first row of that band only.


PERMUTATIONS = 64  # of each sketch: the standard error of a similarity of 0.85 is 0.045
_BANDS, _ROWS = (
    32,
    2,
)  # bands of a sketch, and values per band: two rows of similarity 0.85 miss all of them 1 time in 10^8
_SIMILAR = 0.85
_SHINGLE = 3  # words
_CHARACTERS = 5  # of a shingle where words are not separated by spaces
_SEED = 1


def shingles(text: str) -> list[str]:
    """The overlapping word triples of a text; of a script without spaces, its runs of five characters."""
    words = text.split()
    if len(text) > 24 * max(len(words), 1):
        return [text[i : i + _CHARACTERS] for i in range(max(1, len(text) - _CHARACTERS + 1))]
    return [" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))]


def sketch(texts: Sequence[tuple[str, str]]) -> NDArray[np.uint16]:
    """(N, 2, PERMUTATIONS): the sketches of (prompt, responses). 16 of 32 bits are kept: two differ by chance alone
    once in 65,536."""
    from rensa import RMinHash

    known = [text.encode(errors="replace").decode() for row in texts for text in row]  # surrogates have no UTF-8
    sets = [shingles(text) for text in known]
    digests = np.array(RMinHash.digests_from_token_sets(sets, PERMUTATIONS, _SEED), np.uint32)
    return (digests & 0xFFFF).astype(np.uint16).reshape(len(texts), 2, PERMUTATIONS)


def near_duplicates(sketches: NDArray[np.uint16]) -> NDArray[np.int64]:
    """For each row the position of the earliest row found that is nearly the same; its own where there is none."""
    rows = len(sketches)
    first = np.arange(rows)
    for band in range(_BANDS):
        part = np.ascontiguousarray(sketches[:, :, band * _ROWS : (band + 1) * _ROWS]).reshape(rows, -1)
        keys = part.view(np.uint64).ravel()  # two values of the prompt, two of the responses: 64 bits
        _, head, which = np.unique(keys, return_index=True, return_inverse=True)
        candidate = head[which.ravel()]
        again = np.flatnonzero((candidate < np.arange(rows)) & (first == np.arange(rows)))
        for start in range(0, len(again), 100_000):  # bounded memory
            some = again[start : start + 100_000]
            alike = (sketches[some] == sketches[candidate[some]]).mean(axis=2).min(axis=1) >= _SIMILAR
            first[some[alike]] = first[candidate[some[alike]]]
    return first
