"""Token ids that a model has no row for: an IndexError on a CPU, a device assert on a GPU, so they are refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

_BATCH = 10_000


@dataclass(frozen=True)
class Vocabulary:
    """How many tokens a model knows; None if that cannot be told.

    Attributes:
        embeddings: rows of its embeddings, which every token of a row needs.
        head: rows of its LM head, which every token of a response needs.
    """

    embeddings: int | None
    head: int | None

    def rows_for(self, column: str) -> int | None:
        """The number of tokens that `prompt_ids` or `<side>_ids` may hold."""
        known = [rows for rows in (self.embeddings, self.head if column != "prompt_ids" else None) if rows]
        return min(known, default=None)


def vocabulary_of(model: Any) -> Vocabulary:
    """The vocabulary of a model's weights, sharded ones included."""
    from trl_plus.upstream.models import head_size

    def module(of: str) -> Any:
        try:
            return getattr(model, of)()
        except (AttributeError, NotImplementedError):
            return None

    embeddings = module("get_input_embeddings")
    rows = getattr(embeddings, "num_embeddings", None) or head_size(embeddings) or None
    return Vocabulary(rows, head_size(module("get_output_embeddings")) or None)


def vocabulary_named(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Vocabulary:
    """The vocabulary that a model's configuration names, without its weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return Vocabulary(None, None)
    size = getattr(config.get_text_config(), "vocab_size", None)
    return Vocabulary(size, size)


def unknown_token(values: np.ndarray, rows: int | None) -> int | None:
    """The place of the first id that is negative or has no row, or None."""
    if rows is None or not len(values) or (values.min() >= 0 and values.max() < rows):
        return None
    return int(np.argmax((values < 0) | (values >= rows)))


def refuse_unknown_tokens(dataset: Any, columns: list[str], vocabulary: Vocabulary, name: str, tokenizer: Any) -> None:
    """Raises a ValueError that names the first row of a tokenized dataset with a token that the model has no row for.

    Args:
        columns: `prompt_ids` and `<side>_ids`.
    """
    start = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(_BATCH):
        for column in columns:
            flat = pc.list_flatten(batch[column]).to_numpy()
            place, rows = unknown_token(flat, vocabulary.rows_for(column)), vocabulary.rows_for(column)
            if place is not None and rows is not None:
                row = start + int(pc.list_parent_indices(batch[column])[place].as_py())
                raise ValueError(f"Row {row} of {name} holds {no_row(int(flat[place]), rows, tokenizer)}")
        start += len(batch)


def no_row(token: int, rows: int, tokenizer: Any) -> str:
    """The fault of a token, and the fix; continues "... holds"."""
    if token < 0:
        return f"token {token}, which is no token: remove the row, or tokenize it again."
    try:
        text = f" ({tokenizer.convert_ids_to_tokens(token)!r})"
    except Exception:  # an id that the tokenizer does not know either
        text = ""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else token + 1
    return (
        f"token {token}{text}, but the model has {rows} tokens (0 to {rows - 1}). Fix: use the model's own tokenizer, "
        f"or give the model rows for the added tokens with `model.resize_token_embeddings({max(size, token + 1)})`, "
        "save it and train that; new rows must be trained, so with LoRA add "
        "`lora_modules_to_save: [embed_tokens, lm_head]`."
    )
