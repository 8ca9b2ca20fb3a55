"""Counts and examples of each check, and arrays for the checks of a whole split."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trl_plus.data.shortcut_rule import Examples, of_labels, of_pairs
from trl_plus.data.surface import TOKENS, with_stock
from trl_plus.preflight.findings import EXAMPLES, Example, Preview, Severity, Shortcut
from trl_plus.preflight.rows import SOURCE, SOURCE_ROW
from trl_plus.preflight.shortcuts import audit

if TYPE_CHECKING:
    from collections.abc import Iterable


class Hits(NamedTuple):
    """Result of a token check on a batch: a mask over its rows, what to show of one, and counts to put in words."""

    mask: np.ndarray
    detail: Callable[[int], str]
    parts: dict[str, int] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)


@dataclass(frozen=True)
class Verdict:
    """Result of a summary check. `severity` overrides that of the check; `count` is 0 for the split as a whole."""

    sentence: str = ""
    count: int = 0
    examples: tuple[Example, ...] = ()
    severity: Severity | None = None

    @classmethod
    def of_rows(cls, count: int, summary: "Summary", examples: "Iterable[Example]") -> "Verdict":
        """A verdict on single rows, whose sentence is made of their number and the check's title."""
        return cls("", count, tuple(examples))


@dataclass
class Found:
    """How often a check found something, the rows it looked at, and its first examples."""

    count: int = 0
    checked: int = 0
    examples: list[Example] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)

    def add(self, example: Example) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def merge(self, other: "Found") -> None:
        self.count += other.count
        self.checked += other.checked
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.parts.update(other.parts)


@dataclass
class Tally:
    """The counts of a part of a split; parts add up in any grouping.

    Attributes:
        rows: rows looked at.
        text, tokens: columns with one value per readable row, and per token row, in batches.
        counts: other things that were counted.
        previews: of the first rows.
    """

    rows: int = 0
    found: dict[str, Found] = field(default_factory=dict)
    text: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: dict[str, list[np.ndarray]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    previews: list[Preview] = field(default_factory=list)
    refused: str = ""  # why rows could not be brought into shape at all

    def of(self, code: str) -> Found:
        return self.found.setdefault(code, Found())

    def keep(self, columns: dict[str, list[np.ndarray]], values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    def merge(self, other: "Tally") -> None:
        self.rows += other.rows
        for code, found in other.found.items():
            self.of(code).merge(found)
        for mine, theirs in ((self.text, other.text), (self.tokens, other.tokens)):
            for name, parts in theirs.items():
                mine.setdefault(name, []).extend(parts)
        self.counts.update(other.counts)
        self.previews = [*self.previews, *other.previews]
        self.refused = self.refused or other.refused


@dataclass(frozen=True)
class Summary:
    """A split as the summary checks see it.

    Attributes:
        index: row in the source, for each readable row.
        text: per readable row: hashes "row", "prompt" and of each side, "<side>_size" in characters, "label", "sketch",
            "position", and "surface", "stock" (both of each side) and "weight", see `data.surface`.
        tokens: per token row: "prompt", and of each side, in tokens; "label", "dropped", and its row's "position".
        hits: what the other checks found, by code.
        sampled: only some of the split's rows were looked at.
        scattered: and these are not neighbours.
        train: the training split, for a held-out one.
    """

    split: str
    index: np.ndarray
    text: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    hits: dict[str, Found]
    counts: dict[str, int]
    sampled: bool
    scattered: bool
    streaming: bool
    train: "Summary | None" = None

    def row(self, place: int) -> dict[str, int]:
        """The origin of a row, as `Target.example` takes it."""
        found = {SOURCE_ROW: int(self.index[place])}
        return {**found, SOURCE: int(self.text["source"][place])} if "source" in self.text else found

    @cached_property
    def examples(self) -> Examples | None:
        """The rows as the audit of shortcuts sees them; None if no row was read."""
        if "surface" not in self.text:
            return None
        measured, keys = self.text["surface"], self.text["stock"]
        whole, _ = with_stock(measured.astype(np.float32), keys)
        tokens = self._token_counts(measured.shape[1])
        if tokens is not None:
            whole[..., TOKENS] = np.log1p(tokens)
        prompts, weights = self.text["prompt"], self.text["weight"]
        if "label" in self.text:
            return of_labels(whole[:, 0], self.text["label"], prompts, weights)
        return of_pairs(whole, prompts, weights)

    @cached_property
    def shortcut(self) -> Shortcut | None:
        """The accuracy of surface features alone on the training rows; None for a held-out split or too few rows."""
        return audit(self.examples) if self.split == "train" and self.examples is not None else None

    def _token_counts(self, sides: int) -> np.ndarray | None:
        """(N, sides): tokens of each response, 0 for a row that was not tokenized; None without a model."""
        if not self.tokens:
            return None
        place = np.searchsorted(self.text["position"], self.tokens["position"])
        found = np.full((len(self.text["position"]), sides), -1, np.int64)
        if sides == 2 and "completion" in self.tokens:  # a pair that became two completions
            found[place, np.where(self.tokens["label"], 0, 1)] = self.tokens["completion"]
        else:
            for side, name in enumerate(("chosen", "rejected") if sides == 2 else ("completion",)):
                found[place, side] = self.tokens[name]
        return np.where((found < 0).any(1, keepdims=True), 0, found)

    @property
    def unit(self) -> str:
        return "tokens" if self.tokens else "characters"

    def response_sizes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lengths of wanted and unwanted responses: of the two sides of each pair, or of the rows of each label."""
        if self.tokens:
            source = {name: self.tokens[name] for name in self.tokens}
        else:
            source = {name.removesuffix("_size"): value for name, value in self.text.items() if name.endswith("_size")}
            source |= {"label": self.text["label"]} if "label" in self.text else {}
        if "chosen" in source:
            return source["chosen"], source["rejected"]
        if "completion" not in source:
            return None
        return source["completion"][source["label"]], source["completion"][~source["label"]]


def joined(columns: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Each column as one array. A batch is let go when it is copied, so that memory never holds a column twice."""
    return {name: _drained(columns.pop(name)) for name in list(columns)}


def _drained(parts: list[np.ndarray]) -> np.ndarray:
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    parts.reverse()
    done = 0
    while parts:
        part = parts.pop()
        whole[done : done + len(part)] = part
        done += len(part)
    return whole
