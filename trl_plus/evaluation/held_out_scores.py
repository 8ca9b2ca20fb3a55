"""The scores of every held-out pair, in the folder of the run whose weights they are of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_plus.evaluation.measures import PER_TOKEN, REWARD, pair_weights
from trl_plus.evaluation.models import Scores
from trl_plus.evaluation.rows import ROW, HeldOut
from trl_plus.evaluation.statistics import Floats, Ints
from trl_plus.runs.weights import EvaluatedWeights

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PairScores:
    """P held-out pairs under one model.

    Attributes:
        rows: (P,) text that names a pair: entry of a mixture, then the numbers of its rows in their source.
        prompts: (P,), pairs of one number share a prompt.
        weights: (P,).
        margins: by measure, (P,): the score of the better side minus that of the worse one.
        digest: of all held-out rows before tokenization.
        weights_of: identity of the scored weights.
    """

    rows: list[str]
    prompts: Ints
    weights: Floats
    margins: dict[str, Floats]
    digest: str | None
    weights_of: EvaluatedWeights


def pair_scores(held_out: HeldOut, scores: Scores, weights_of: EvaluatedWeights) -> PairScores:
    """The margins of the held-out pairs."""
    better, worse = held_out.pairs.T
    count = len(held_out.rows)
    numbers, entries = held_out.rows[ROW][:], None
    if f"{ROW}_source" in held_out.rows.column_names:
        entries = held_out.rows[f"{ROW}_source"][:]

    def name(pair: Any) -> str:
        rows = dict.fromkeys(int(side) % count for side in pair)
        return " ".join(f"{entries[at]}:{numbers[at]}" if entries else str(numbers[at]) for at in rows)

    measured = {REWARD: scores.reward, PER_TOKEN: scores.per_token}
    return PairScores(
        rows=[name(pair) for pair in held_out.pairs],
        prompts=held_out.prompts[better],
        weights=pair_weights(held_out),
        margins={measure: v[better] - v[worse] for measure, v in measured.items() if v is not None},
        digest=held_out.digest,
        weights_of=weights_of,
    )


def write_scores(scores: PairScores, path: Path) -> None:
    """Write the scores as one JSON object. The file is whole or as it was."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "held_out_digest": scores.digest,
        "weights": {"step": scores.weights_of.step, "fingerprint": scores.weights_of.fingerprint},
        "rows": scores.rows,
        "prompts": scores.prompts.tolist(),
        "row_weights": scores.weights.tolist(),
        "margins": {measure: values.tolist() for measure, values in scores.margins.items()},
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_scores(path: Path) -> PairScores | None:
    """The scores of a file; None if there is none, or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return PairScores(
            rows=content["rows"],
            prompts=np.array(content["prompts"], np.int64),
            weights=np.array(content["row_weights"], float),
            margins={measure: np.array(values, float) for measure, values in content["margins"].items()},
            digest=content["held_out_digest"],
            weights_of=EvaluatedWeights(content["weights"]["step"], content["weights"]["fingerprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
