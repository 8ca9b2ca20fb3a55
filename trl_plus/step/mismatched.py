"""KTO's mismatched rows: which completion is put under which prompt, and in which passes they are scored.

The reference point is estimated from each completion of the effective batch under a prompt that is not its own. The
rule below looks only at the rows' tokens, so it gives the same partners however the effective batch is cut into
micro-batches and ranks. The passes are made on the host and sent to the device at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import cycle, groupby
from typing import Any

import torch
from torch import Tensor

from trl_plus.forward.layouts import Planner, count_rows, rows_of_batch, to_device, to_host
from trl_plus.forward.packing import RowLayout

Z_REF = "a log-ratio of KTO's mismatched rows (z_ref)"  # in the messages of the check at the start

Batch = dict[str, Any]
Pass = tuple[Tensor, Batch, Batch]


@dataclass(frozen=True)
class KLRow:
    """Token ids of one row's prompt and completion, without padding, and its example weight."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weight: float = 1.0


READ = ("input_ids", "attention_mask", "completion_mask", "weight")


def read_batches(
    batches: Sequence[dict[str, Tensor]], also: Sequence[Tensor] = ()
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """The tensors that `rows_of` reads of each batch, and those of `also`, on the CPU. Waits for the device once."""
    parts = [{name: batch[name] for name in READ if name in batch} for batch in batches]
    found = iter(to_host([*(tensor for part in parts for tensor in part.values()), *also]))
    return [{name: next(found) for name in part} for part in parts], list(found)


def rows_of(batch: dict[str, Tensor]) -> list[KLRow]:
    """The rows of a collated micro-batch: what lies before the first completion token is the prompt."""
    rows = []
    ((batch,), _) = read_batches([batch])
    weights = batch["weight"].tolist() if "weight" in batch else [1.0] * len(batch["input_ids"])
    columns = zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], weights, strict=True)
    for ids, attended, completion, weight in columns:
        ids, completion = ids[attended.bool()], completion[attended.bool()].bool()
        start = int(completion.int().argmax()) if completion.any() else len(ids)
        rows.append(KLRow(tuple(ids[:start].tolist()), tuple(ids[completion].tolist()), weight))
    return rows


def _digest(ids: Sequence[int]) -> bytes:
    return blake2b(",".join(map(str, ids)).encode(), digest_size=16).digest()


def mismatched_partners(rows: Sequence[KLRow]) -> list[int | None]:
    """For each row the index of the row whose completion is scored under its prompt, or None where none can be.

    Rows are put into an order that only their contents decide, rows of one prompt side by side, and each takes the
    completion that stands one largest group further on: a permutation without a true pair, unless one prompt holds
    more than half of the rows; what then meets its own prompt goes round the completions of all other prompts. The
    order is by hash rather than by token, so that prompts that begin alike do not become neighbours.
    """
    keys = [_digest(row.prompt) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (keys[i], _digest(rows[i].completion)))
    groups = [len(list(group)) for _, group in groupby(order, key=lambda i: keys[i])]
    partners: list[int | None] = [None] * len(rows)
    if len(groups) < 2:
        return partners
    n, shift = len(rows), max(groups)
    for position, row in enumerate(order):
        partners[row] = order[(position + shift) % n]
    # Only a prompt with more than half of the rows meets itself; it goes round the completions of all others
    alone = [row for row in order if keys[partners[row]] == keys[row]]
    others = [row for row in order if alone and keys[row] != keys[alone[0]]]
    for row, partner in zip(alone, cycle(others), strict=False):
        partners[row] = partner
    return partners


def kl_batch(
    pairs: Sequence[tuple[KLRow, KLRow]], pad_token_id: int, max_length: int | None, device: torch.device
) -> dict[str, Tensor]:
    """Right-padded tensors of the prompt of each pair's first row followed by the completion of its second.

    Returns `input_ids`, `attention_mask` and `completion_mask`, (B, T), int64, cut at `max_length` tokens, on `device`.
    """
    ids = [torch.tensor((*a.prompt, *b.completion)[:max_length]) for a, b in pairs]
    masks = [torch.tensor([0] * len(a.prompt) + [1] * len(b.completion))[:max_length] for a, b in pairs]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad([torch.ones_like(x) for x in ids], batch_first=True),
        "completion_mask": pad(masks, batch_first=True),
    }
    return dict(zip(batch, to_device(list(batch.values()), device), strict=True))


def kl_passes(
    pairs: list[tuple[KLRow, KLRow]],
    parts: list[list[int]],
    *,
    own: bool,
    pad_token_id: int,
    max_length: int | None,
    device: torch.device,
    ahead: tuple[Planner, RowLayout, list[tuple[Batch, Batch]]] | None,
) -> list[Pass]:
    """Of each pass: the weights of its rows, the rows, and what the reference scores. One copy to the device.

    Args:
        parts: which of the pairs go into one pass.
        own: the reference scores the rows' own completions, too.
        ahead: planner and layout of the run, and the micro-batches of the step, each with its copy on the host: they
            are planned with the passes. None plans nothing.
    """
    tensors = partial(kl_batch, pad_token_id=pad_token_id, max_length=max_length, device=torch.device("cpu"))
    weights, batches = [], []
    for part in parts:
        rows = [pairs[i] for i in part]
        weights.append(torch.tensor([row.weight for row, _ in rows]))
        batches.append(tensors(rows))
        if own:
            batches.append(tensors([(row, row) for row, _ in rows] + rows))
    flat = [*weights, *(tensor for batch in batches for tensor in batch.values())]
    if ahead is None:
        moved = iter(to_device(flat, device))
    else:
        planner, layout, step = ahead
        made = [rows_of_batch(batch) for batch in batches]
        known, _ = count_rows([*made, *(rows_of_batch(read) for _, read in step)])
        given = [rows_of_batch(batch) for batch, _ in step]
        moved = iter(planner.prepare([*made, *given], known, layout.setting, device, flat))
    weights = [next(moved) for _ in weights]
    there = [{name: next(moved) for name in batch} for batch in batches]
    if ahead is not None:
        for before, now in zip(made, there, strict=True):
            planner.know(before, rows_of_batch(now))
    each = 2 if own else 1
    return list(zip(weights, there[::each], there[each - 1 :: each], strict=True))
