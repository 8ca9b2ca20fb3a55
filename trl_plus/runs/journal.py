"""The record of a run: its messages and end in `journal.jsonl`, one event a line, and its figures in `metrics.json`.

Events: "begin" (also of a resumed run), "training" (the steps it will make), "note", "warning", "end".
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trl_plus.errors import first_line
from trl_plus.ui.environment import versions

JOURNAL = "journal.jsonl"
COMMAND = "TRL_PLUS_COMMAND"  # environment variable: the command line that started the run, for every process of it
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Journal:
    """Writes the events of one run, from `begin` on.

    Args:
        writes: whether this process is the one that writes.
        say: prints a sentence or a table.

    Attributes:
        step: the optimizer step that events belong to.
    """

    def __init__(self, folder: Path, writes: bool, say: Callable[[Any], None]) -> None:
        self.path, self.step = folder / JOURNAL, 0
        self._say, self._writes, self._open = say, writes, False
        self._held: list[str] | None = None

    def begin(self, fresh: bool, hold: bool = False, **facts: Any) -> None:
        """Record that the run is accepted. A fresh one starts a new file; a resumed one appends to it.

        Args:
            hold: the file is another run's until `take_over`. A run that ends before it leaves no event.
        """
        self._open = self._writes
        if hold:
            self._held = []
        elif self._open and fresh:
            self.path.unlink(missing_ok=True)
        self._write("begin", **facts)

    def take_over(self) -> None:
        """Write the events that were held: the folder is this run's now."""
        held, self._held = self._held, None
        if held:
            self._append("".join(held))

    def began(self) -> datetime:
        """The time when the run first began; now if it is not known."""
        known = _time_of(self._held[0]) if self._held else began_at(self.path)
        return known or datetime.now(UTC)

    def training(self, first: int, last: int) -> None:
        """Record that training begins after optimizer step `first` and ends with step `last`."""
        self.step = first
        self._write("training", steps=last)

    def say(self, what: Any) -> None:
        """Print a sentence or a table. Sentences are recorded; tables are in metrics.json."""
        self._say(what)
        if isinstance(what, str):
            self._write("note", text=what)

    def warn(self, text: str) -> None:
        """Print a sentence about something that looks wrong, and record it as a warning."""
        self._say(text)
        self._write("warning", text=text)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Record the trainers' log inside the block, and at its end how the run ended."""
        handler = _Handler(self)
        logger = logging.getLogger("trl_plus")
        logger.addHandler(handler)
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            self._write("end", outcome=STOPPED if stopped else FAILED, error=None if stopped else first_line(error))
            raise
        else:
            self._write("end", outcome=FINISHED, error=None)
        finally:
            logger.removeHandler(handler)

    def _write(self, event: str, **values: Any) -> None:
        if not self._open:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "time": now, "step": self.step, **values}) + "\n"
        if self._held is None:
            self._append(line)
        else:
            self._held.append(line)

    def _append(self, lines: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:  # a full disk must not hide the error that the run fails with
            self._open = False
            print(f"{self.path} cannot be written: {error.strerror}.", file=sys.stderr)


def began_at(path: Path) -> datetime | None:
    """The time when the run of a journal began; None if it is not known."""
    try:
        with path.open(encoding="utf-8") as file:
            return _time_of(file.readline())
    except (OSError, ValueError):
        return None


def _time_of(line: str) -> datetime | None:
    try:
        return datetime.fromisoformat(json.loads(line)["time"])
    except (ValueError, KeyError, TypeError):
        return None


class _Handler(logging.Handler):
    """Prints and records the log of the trainers: Python prints nothing that a handler takes.

    A fact that users of Python must see is logged as a warning with `extra={"note": True}`; here it is a note.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        record_event = self.journal.say if getattr(record, "note", False) else self.journal.warn
        record_event(record.getMessage())


METRICS = "metrics.json"


# -- the measurements of a run: metrics.json ------------------------------------------------------------------------


@dataclass
class Sample:
    """One held-out prompt and its answers. None if an answer is not known."""

    prompt: str
    before: str | None
    after: str | None = None


@dataclass
class Report:
    """The measurements of a run.

    Attributes:
        held_out_rows: number of evaluated rows; None if they cannot be counted (streaming).
        held_out_digest: of the held-out rows before tokenization (`data.digests`).
        model_fingerprint: of the base weights (`runs.weights.fingerprint`); None for a model on the hub.
        before, after: held-out metrics; None if there are no held-out rows or they are not known.
        step: optimizer step of the weights that the run ended with; None until then.
        train: transformers' metrics of the training (loss, seconds, samples per second).
    """

    method: str
    model: str
    dataset: str
    held_out_rows: int | None = 0
    held_out_digest: str | None = None
    model_fingerprint: str | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    train: dict[str, float] | None = None
    step: int | None = None
    generations: list[Sample] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write metrics.json."""
        content = {**asdict(self), "versions": versions()}
        part = folder / f"{METRICS}.part"  # renamed when whole: a run killed here leaves the file as it was
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(folder / METRICS)

    def recall(self, folder: Path) -> None:
        """Take over what the run measured before it is resumed: before its first step and, of the rows that are held
        out now, after its last; the metrics of a training that had come to its end."""
        content = measured(folder)
        if content is None:
            return
        if content["held_out_rows"] == self.held_out_rows and content["dataset"] == self.dataset:
            self.before = content["before"]
            if content.get("held_out_digest") == self.held_out_digest:
                self.after = content["after"]
        self.model_fingerprint = content.get("model_fingerprint") or self.model_fingerprint
        self.train, self.step = content["train"], content.get("step")
        self.generations = [Sample(**sample) for sample in content["generations"]]

    def forget_after(self) -> None:
        """Drop the figures after training: the weights are no longer those that were measured."""
        self.after = None
        self.generations = [Sample(sample.prompt, sample.before) for sample in self.generations]

    def add_answers(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Set the answers after training; those before it are kept if the prompt is the same."""
        before = {sample.prompt: sample.before for sample in self.generations}
        self.generations = [Sample(p, before.get(p), answer) for p, answer in zip(prompts, answers, strict=True)]


def measured(folder: Path) -> dict[str, Any] | None:
    """The content of a run's metrics.json; None if it was never written or was cut short."""
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
