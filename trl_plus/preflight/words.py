"""The words and figures that every face of a preflight shares."""

from statistics import median

from trl_plus.preflight.findings import EXCERPT, Example, Finding, Result, Severity, Shortcut, Split
from trl_plus.ui.console import clipped

DETAIL = 4 * EXCERPT  # characters shown of an example: a check may put excerpts of two sides into one
PARAGRAPH = 2000  # characters shown of a sentence or a name
PLURALS = {Severity.ERROR: "errors", Severity.WARNING: "warnings", Severity.INFO: "info"}
_SINGULARS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "info"}


def by_severity(findings: list[Finding]) -> dict[Severity, list[Finding]]:
    """The findings of each severity that occurs, the gravest first, in their given order."""
    groups = {severity: [f for f in findings if f.severity is severity] for severity in Severity}
    return {severity: group for severity, group in groups.items() if group}


def verdict(result: Result) -> str:
    """The outcome in one sentence."""
    if result.count(Severity.ERROR):
        return "Not ready: `trl-plus train` stops on errors."
    if result.count(Severity.WARNING):
        return "No errors. Read the warnings before you train."
    if result.findings:
        return "No errors or warnings, only notes."
    return "No errors and no warnings."


def totals(result: Result) -> str:
    """How many findings there are, in how many rows."""
    counts = [_number(result.count(severity), severity) for severity in Severity]
    rows = " and ".join(f"{split.checked:,} {split.name}" for split in result.splits) or "no"
    return f"{', '.join(counts)} in {rows} rows, {result.seconds:.1f} s"


def _number(count: int, severity: Severity) -> str:
    return f"{count:,} {_SINGULARS[severity] if count == 1 else PLURALS[severity]}"


def percent(share: float) -> str:
    """A share in per cent: "0.0%" and "100.0%" mean none and all."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def extent(finding: Finding) -> str:
    """In how many rows something was found."""
    if not finding.count:
        return "the split as a whole"
    return f"{finding.count:,} of {finding.checked:,} rows ({percent(finding.share)})"


def beyond_title(finding: Finding) -> str:
    """The part of a finding's sentence that its title and extent, which stand above it, leave out; may be empty."""
    before, title, after = finding.sentence.partition(finding.title)
    counted = title and before[:1].isdigit() and before.endswith(": ")
    return after.strip(" .").removeprefix("(").removesuffix(")") if counted else finding.sentence


def detail(example: Example) -> str:
    """The finding in a row, on one line: a line break in it is written as `\\n`."""
    return clipped(example.detail, DETAIL).replace("\n", "\\n").replace("\t", "\\t")


def more_rows(finding: Finding) -> str:
    """How many rows a finding was made in beyond its examples; empty where it shows all."""
    more = finding.count - len(finding.examples)
    return f"and {more:,} more {'row' if more == 1 else 'rows'}" if finding.examples and more > 0 else ""


def rows_of(split: Split) -> str:
    """How many rows a split has, and how many of them were looked at."""
    if split.rows is None:
        return f"{split.checked:,} rows checked of a stream"
    if split.checked == split.rows:
        return f"{split.rows:,} rows, all checked"
    return f"{split.checked:,} of {split.rows:,} rows checked"


def effect_of_limit(split: Split, max_length: int | None) -> str:
    """The effect of `max_length` on a split. It counts prompt and response together."""
    if max_length is None:
        return "No max_length: nothing is dropped or cut."
    parts = [f"drops {split.dropped:,} of {split.checked:,} rows"] if split.dropped else []
    cut = [f"{count:,} {side}" for side, count in split.cut.items() if count]
    parts += [f"cuts {' and '.join(cut)} responses"] if cut else []
    return f"max_length {max_length} {' and '.join(parts) or 'drops and cuts nothing'}."


def quantile_name(key: str) -> str:
    """The heading of a quantile: "0.5" is the median, "0.95" is 95%."""
    share = float(key)
    return {0.0: "min", 0.5: "median", 1.0: "max"}.get(share, f"{100 * share:g}%")


def length_difference(pairs: list[tuple[int, int]]) -> str:
    """How often the chosen response is the longer one, of (chosen, rejected) lengths in tokens."""
    longer, shorter = sum(c > r for c, r in pairs), sum(c < r for c, r in pairs)
    return (
        f"The chosen response is longer in {percent(longer / len(pairs))} and shorter in "
        f"{percent(shorter / len(pairs))} of {len(pairs):,} pairs; median difference "
        f"{median(c - r for c, r in pairs):+g} tokens."
    )


def label_balance(labels: dict[str, int]) -> str:
    """Rows per label, with their shares."""
    total = sum(labels.values())
    return ", ".join(f"{count:,} {label} ({percent(count / total if total else 0)})" for label, count in labels.items())


def shortcut_share(found: Shortcut) -> str:
    """The accuracy of surface features alone, beside that of chance."""
    value, what = found.accuracy, "the preferred side" if found.paired else "the label"
    return (
        f"Surface features alone tell {what} in {percent(value.value)} of {found.rows:,} rows (95% interval "
        f"{percent(value.low)} to {percent(value.high)}; chance is 50%)."
    )
