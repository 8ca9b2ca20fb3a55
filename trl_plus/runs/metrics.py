"""The measurements of a run: metrics.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trl_plus.ui.environment import versions

FILE = "metrics.json"


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
        part = folder / f"{FILE}.part"  # renamed when whole: a run killed here leaves the file as it was
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(folder / FILE)

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
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
