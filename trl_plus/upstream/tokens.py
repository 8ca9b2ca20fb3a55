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
