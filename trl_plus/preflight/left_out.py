"""D110: rows that a converter has left out, so that no other check sees them."""

from trl_plus.data.conversion import LeftOut
from trl_plus.data.loading import RawData
from trl_plus.preflight.findings import Example, Finding, Severity

CODE, RARE = "D110", 0.1  # up to this share it is only INFO: ties between scored answers are left out by design
TITLE = "the converter leaves the row out"
CURE = "Look at the reasons: mend these rows, or choose the converter by the rows shown in docs/data.md."


def left_out(raw: RawData) -> list[Finding]:
    """A finding for each table of which a converter has left out rows. Of a stream they are named in the log."""
    return [_finding(note, "eval" if note.name == raw.eval_name else "train") for note in raw.notes
            if isinstance(note, LeftOut)]  # fmt: skip


def _finding(note: LeftOut, split: str) -> Finding:
    share = note.rows / note.of
    severity = Severity.WARNING if share > RARE else Severity.INFO
    sentence = f"{note.rows} of {note.of} rows ({share:.1%}) of {note.name}: {TITLE}."
    examples = tuple(Example(row, reason) for row, reason in note.first.items())
    return Finding(CODE, severity, split, TITLE, sentence, note.rows, note.of, CURE, examples)
