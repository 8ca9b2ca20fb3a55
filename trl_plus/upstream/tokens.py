"""Tokens exactly as TRL makes them."""

from typing import Any


def tokenize(processing_class: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    """Token ids of a conversation, by the function that TRL tokenizes rows with."""
    from trl.data_utils import _tokenize

    return _tokenize(processing_class, messages, **kwargs)["input_ids"]


def common_prefix(a: list[int], b: list[int]) -> int:
    """Number of tokens at the beginning that two rows share."""
    from trl.data_utils import common_prefix_length

    return common_prefix_length(a, b)


def write(processing_class: Any, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """The text that `tokenize` makes tokens of."""
    from transformers import ProcessorMixin
    from trl.data_utils import prepare_multimodal_messages

    if isinstance(processing_class, ProcessorMixin):
        messages = prepare_multimodal_messages(messages)
    return str(processing_class.apply_chat_template(messages, tokenize=False, **kwargs))


def offsets_of(processing_class: Any, text: str, ids: list[int], *, add_special_tokens: bool) -> Any | None:
    """The characters of each token, (tokens, 2), int64: the first, and one behind the last.

    None if the tokenizer has none, or if it makes other tokens of the text than `ids`.
    """
    import numpy as np

    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not getattr(tokenizer, "is_fast", False):
        return None
    made = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return np.array(made["offset_mapping"], np.int64).reshape(-1, 2) if list(made["input_ids"]) == list(ids) else None
