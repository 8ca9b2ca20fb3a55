"""Findings with a stable code, and the result of a preflight."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trl_plus.evaluation.intervals import Estimate

EXAMPLES = 3  # rows shown per finding
EXCERPT = 160  # characters of an example
WORTH = 0.65  # accuracy from which a shortcut is reported


class Severity(StrEnum):
    """ERROR: the rows teach something wrong, or the run would refuse them. WARNING: probably not what is wanted.
    INFO: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Example:
    """One row of a finding: `row` counts from 0 in the split as it lies in the source; `detail` is what was found."""

    row: int
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing found in one split.

    Attributes:
        code: stable, such as "D105"; docs/preflight.md lists them.
        split: "train" or "eval".
        title: what was looked for, the same for every dataset.
        sentence: what was found, with its numbers.
        count: rows it was found in; 0 where it is a property of the dataset as a whole.
        checked: rows it was looked for in.
        examples: the first rows, at most `EXAMPLES`.
        cure: what to do about it.
    """

    code: str
    severity: Severity
    split: str
    title: str
    sentence: str
    count: int
    checked: int
    cure: str
    examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float:
        """`count` as a share of `checked`, 0 to 1."""
        return self.count / self.checked if self.checked else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "split": self.split,
            "title": self.title,
            "sentence": self.sentence,
            "count": self.count,
            "checked": self.checked,
            "share": self.share,
            "examples": [{"row": example.row, "detail": example.detail} for example in self.examples],
            "cure": self.cure,
        }


@dataclass(frozen=True)
class Lengths:
    """Token lengths of one part ("prompt", "chosen", "rejected" or "completion") of a split, before any cut.

    Attributes:
        edges: bin edges in tokens, ascending, one more than `counts`.
        counts: rows per bin.
        quantiles: tokens by quantile, "0.5" and so on.
        mean: in tokens.
    """

    part: str
    edges: list[int]
    counts: list[int]
    quantiles: dict[str, float]
    mean: float


@dataclass(frozen=True)
class Token:
    """One token as trained on: its text, and what becomes of it.

    Attributes:
        loss: part of the response, so of the loss. False: prompt, or an earlier turn.
        special: a special token of the tokenizer.
        cut: beyond `max_length`, never seen by the model.
        masked: part of the completion that `train_on` and `mask` take out of the loss.
    """

    text: str
    loss: bool
    special: bool
    cut: bool
    masked: bool = False


@dataclass(frozen=True)
class Preview:
    """The token sequences of one row: side ("chosen", "rejected" or "completion") -> its tokens, prompt first.

    `dropped` says why the row is not trained on at all, and is empty where it is.
    """

    row: int
    split: str
    sides: dict[str, list[Token]]
    label: bool | None = None
    dropped: str = ""


@dataclass(frozen=True)
class Trait:
    """The weight of one feature in the rule, or of all features of length together ("length").

    Attributes:
        weight: standard deviation of what it adds to the log-odds; negative if less is preferred.
        alone: weighted share of pairs whose preferred side has more of it, ties counted half; of labelled rows the
            chance that a wanted one has more than another.
    """

    name: str
    words: str
    weight: float
    alone: float


@dataclass(frozen=True)
class Wrong:
    """A row that the rule judges wrong: its place among the rows looked at, and which features mislead it, in words."""

    row: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Shortcut:
    """The accuracy of surface features alone.

    Attributes:
        rows, prompts: looked at.
        accuracy: cross-fitted, with its interval.
        length, other: the same by features of length only, and by all others only.
        wrong: rows that are judged wrong.
        traits: the strongest first.
        examples: rows that are judged wrong with most confidence.
        edges, counts: histogram of the cross-fitted scores (log-odds of the preferred side; of labelled rows of the
            label that the row has): below 0 the rule is wrong. The outer bins hold what lies beyond.
    """

    rows: int
    prompts: int
    accuracy: Estimate
    length: Estimate
    other: Estimate
    wrong: int
    traits: tuple[Trait, ...]
    examples: tuple[Wrong, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    paired: bool

    @property
    def found(self) -> bool:
        """Surface features tell the preferred side better than chance, and by more than a little."""
        return worth(self.accuracy)

    @property
    def length_only(self) -> bool:
        """The features that are not of length would not be reported by themselves."""
        return not worth(self.other)


def worth(accuracy: Estimate) -> bool:
    """True if an accuracy is above chance, and by more than a little."""
    return accuracy.low > 0.5 and accuracy.value >= WORTH


@dataclass
class Split:
    """The facts of one split, beyond the findings.

    Attributes:
        rows: rows of the split; None for a stream that was not read to its end.
        checked: rows looked at.
        lengths: token lengths by part; empty without a model.
        differences: (chosen, rejected) response lengths in tokens of at most 1000 rows, for the plot.
        labels: rows by label ("true", "false"); None for pairs.
        dropped, cut: rows that `max_length` drops, and sides it cuts, by side.
        shortcut: what surface features alone reach; None for a held-out split, or for too few rows.
    """

    name: str
    rows: int | None
    checked: int
    lengths: list[Lengths] = field(default_factory=list)
    differences: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[str, int] | None = None
    dropped: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    shortcut: Shortcut | None = None


@dataclass
class Result:
    """The outcome of a preflight. `reporting.preflight_json.as_json` is what `--json` prints of it."""

    source: str
    method: str
    model: str | None
    format: str
    max_length: int | None
    splits: list[Split]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)

    def fails(self, strict: bool = False) -> bool:
        """True if the command exits with 3: there are errors, or warnings under `strict`."""
        return bool(self.count(Severity.ERROR) or (strict and self.count(Severity.WARNING)))
