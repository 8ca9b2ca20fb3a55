"""The model card of a merged model: its adapter's, rewritten where the two differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftConfig

from trl_plus.runs.model_card import card_text, merged_text
from trl_plus.runs.weights import Weights
from trl_plus.setup.card import card_of
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers.card import CARD, adapter_words


def merged_card(objects: RunObjects, weights: Weights, name: str, dtype: str, dequantized: bool) -> str:
    """The card's text. An adapter without a card of ours gets what the recipe says of it: no rows, no metrics.

    Args:
        name: of the merged model.
        dequantized: the base's 4 or 8 bits were turned into numbers first.
    """
    known = card_of(objects)
    adapter = adapter_words(PeftConfig.from_pretrained(weights.path))
    own = Path(weights.path, CARD)
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    of_recipe = card_text(replace(known, name=name, adapter=adapter, counted=False))
    merged = merged_text(text, known.base, adapter, dtype, name, dequantized)
    if merged is None:
        merged = merged_text(of_recipe, known.base, adapter, dtype, name, dequantized)
    assert merged is not None  # our own card has the place to write into
    return merged


def write_card(folder: Path, *merged: Any) -> None:
    """Writes `merged_card` into the folder of the merged model."""
    (folder / CARD).write_text(merged_card(*merged), encoding="utf-8")
