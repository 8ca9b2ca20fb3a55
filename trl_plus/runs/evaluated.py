"""Which weights an evaluation has judged, so that it can be told from one of weights that were trained further."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from trl_plus.runs.checkpoint_files import step_of
from trl_plus.runs.metrics import FILE as METRICS
from trl_plus.runs.weights import Weights, weight_files

_BLOCK, _BLOCKS = 1 << 16, 64  # bytes, and how many of each file are read: 4 MiB, whatever the model


@dataclass(frozen=True)
class Judged:
    """Trained weights.

    Attributes:
        step: optimizer step that they are of; None where nothing says so.
        fingerprint: of the weight files; None for weights on the hub.
    """

    step: int | None
    fingerprint: str | None


def judged(weights: Weights) -> Judged:
    """What tells these weights from others."""
    folder = Path(weights.path)
    if weights.adapter is None or not folder.is_dir():
        return Judged(None, None)
    return Judged(_step(folder), fingerprint(folder))


def fingerprint(folder: Path) -> str | None:
    """A hash of blocks that are spread over the weight files of a folder, and of their sizes; None without any.

    A few steps of training change something in every block of trained weights, so blocks are enough, and as fast for
    any model.
    """
    files = weight_files(folder)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(0, (size - _BLOCK) * number // (_BLOCKS - 1)))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32] if files else None


def _step(folder: Path) -> int | None:
    inside = step_of(folder.absolute())
    if inside >= 0:
        return inside
    try:
        step = json.loads((folder / METRICS).read_text(encoding="utf-8")).get("step")
    except (OSError, ValueError, AttributeError):
        return None
    return step if isinstance(step, int) else None
