"""Columns of our rows beyond TRL's: an example weight, a margin, and how much of a completion is only context."""

from collections.abc import Callable
from typing import Any

import torch

from trl_plus.data.checks import is_number, is_weight

# Row columns that this module reads. `*_context` counts the leading tokens of a completion that are earlier turns.
EXTRA_COLUMNS = (
    "weight",
    *(f"{side}_{what}" for what in ("context", "loss_mask") for side in ("chosen", "rejected", "completion")),
)


class RowExtras:
    """Wraps any collator of TRL's (or a user's) and adds what it does not know.

    Otherwise it behaves as the collator that it wraps: attributes are read and set there, and `isinstance` names its
    class. Workers of a data loader get it pickled.

    - `weight` of the rows becomes a float32 tensor `"weight"`, (B,).
    - `margin` of pairs becomes a float32 tensor `"margin"`, (B,), if it is asked for.
    - `chosen_context`, `rejected_context` or `completion_context` (tokens) shorten the `"completion_mask"`, so that
      only the last assistant turn is the response where the two sides of a pair have different histories.
    - `chosen_loss_mask`, `rejected_loss_mask` or `completion_loss_mask` (true for a token in the loss) take
      tokens out of the `"completion_mask"`. The mask without them becomes `"response_mask"`, (R, T).

    >>> collator = RowExtras(DataCollatorForPreference(pad_token_id=0))
    >>> collator([{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4], "weight": 0.5, "chosen_context": 1}])
    {'input_ids': tensor([[1, 2, 3], [1, 4, 0]]), 'attention_mask': tensor([[1, 1, 1], [1, 1, 0]]),
     'completion_mask': tensor([[0, 0, 1], [0, 1, 0]]), 'weight': tensor([0.5000])}

    Args:
        length_column: the column that a length-grouping sampler reads and a collator does not.
        margin: whether the rows have a `margin` that the loss reads.
    """

    __slots__ = ("collator", "length_column", "margin")

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        length_column: str = "length",
        margin: bool = False,
    ):
        object.__setattr__(self, "collator", collator)
        object.__setattr__(self, "margin", margin)
        object.__setattr__(self, "length_column", length_column)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.collator, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value) if name in self.__slots__ else setattr(self.collator, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.collator, name)

    @property
    def __class__(self) -> type:
        return type(self.collator)

    def __repr__(self) -> str:
        return repr(self.collator)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowExtras, (self.collator, self.length_column, self.margin)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        own = {*EXTRA_COLUMNS, "margin", self.length_column}
        batch = self.collator([{k: v for k, v in row.items() if k not in own} for row in examples])
        if "weight" in examples[0]:
            bad = [row["weight"] for row in examples if not is_weight(row["weight"])]
            if bad:  # only a stream comes here without having been looked through
                raise ValueError(f"A `weight` is {bad[0]!r}: it must be a finite number of at least 0.")
            batch["weight"] = torch.tensor([float(row["weight"]) for row in examples])
        if self.margin:
            batch["margin"] = torch.tensor([_margin(row.get("margin")) for row in examples])
        sides = ("completion",) if "completion_context" in examples[0] else ("chosen", "rejected")
        if f"{sides[0]}_context" in examples[0]:
            skip = torch.tensor([row.get(f"{side}_context") or 0 for side in sides for row in examples])
            mask = batch["completion_mask"]
            batch["completion_mask"] = mask * (mask.cumsum(1) > skip[:, None])
        self._take_out(examples, batch)
        return batch

    def _take_out(self, examples: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        sides = ("completion",) if "completion_loss_mask" in examples[0] else ("chosen", "rejected")
        if f"{sides[0]}_loss_mask" not in examples[0]:
            return
        cuts_the_front = getattr(self.collator, "truncation_mode", "keep_start") == "keep_end"
        response = batch["completion_mask"]
        kept = torch.zeros_like(response)
        for number, flags in enumerate(row[f"{side}_loss_mask"] for side in sides for row in examples):
            places = response[number].nonzero()[:, 0]  # the tokens that the collator has left
            left = flags[len(flags) - len(places) :] if cuts_the_front else flags[: len(places)]
            kept[number, places] = torch.tensor(left, dtype=kept.dtype)
        batch["completion_mask"], batch["response_mask"] = kept, response


def _margin(value: Any) -> float:
    if not is_number(value):  # only a stream comes here without having been read
        raise ValueError(f"A `margin` is {value!r}: it must be a finite number.")
    return float(value)
