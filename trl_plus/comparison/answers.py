"""Answers of one model to many prompts, batched, the same for every batch size."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from trl_plus.comparison.prompts import Prompt
from trl_plus.data.templates import fitted, needs_of
from trl_plus.forward.rope import forget_rows, own_factors
from trl_plus.upstream.models import base_model


@dataclass(frozen=True)
class Sampling:
    """Settings of generation.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 for greedy answers.
        seed: of sampled answers.
        batch_size: prompts answered at once.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: without special tokens and surrounding white space.
        tokens: ids, without the stop token.
        hit_limit: it ended at `max_new_tokens`, not at a stop token.
    """

    text: str
    tokens: tuple[int, ...]
    hit_limit: bool


class PerRowNoise(LogitsProcessor):
    """Samples by the Gumbel-max trick: greedy search over logits / temperature + Gumbel noise draws from the softmax.

    The noise of a row comes from a generator of its own, seeded by its prompt. A row's answer thus depends neither on
    the rows beside it nor on the batch size, and two models that are asked the same get the same noise.

    Args:
        seeds: one for each row.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)  # -log of it is a Gumbel variable
        return scores.float() / self.temperature - noise.log_().to(scores.device)


def answers_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """An answer to each prompt, in their order.

    Prompts are sorted by length, so that batches hold little padding, and padded on the left. Answers do not depend on
    the batch size, but for ties that rounding decides: a model whose rotary factors depend on the longest row answers
    one prompt at a time. The model's training mode is restored, and no random number is
    drawn from the global generators.

    Args:
        prompts: texts, taken as they are, or conversations, to which the chat template is applied.
        advance: told how many prompts are answered.
    """
    texts = [as_text(tokenizer, prompt) for prompt in prompts]
    # a chat template writes the special tokens itself
    ids = [
        tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda index: (-len(ids[index]), index))
    found: dict[int, Answer] = {}
    training = model.training
    model.eval()
    size = 1 if own_factors(base_model(model)) else sampling.batch_size
    try:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            forget_rows(base_model(model))
            seeds = [seed_of(sampling.seed, texts[row]) for row in rows]
            made = _batch(model, tokenizer, [ids[row] for row in rows], seeds, sampling)
            found.update(zip(rows, made, strict=True))
            advance(len(found))
    finally:
        model.train(training)
    return [found[index] for index in range(len(prompts))]


def as_text(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt as the model reads it, before tokenization."""
    if isinstance(prompt, str):
        return prompt
    messages = fitted(prompt, needs_of(tokenizer))
    arguments = getattr(prompt, "arguments", {})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **arguments))


def seed_of(seed: int, text: str) -> int:
    """A seed of 63 bits for one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big") >> 1


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer: the model's, and the one that ends a response in training, the tokenizer's."""
    given = model.generation_config.eos_token_id
    ids = given if isinstance(given, list) else [given]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


@torch.no_grad()
def _batch(
    model: Any, tokenizer: Any, ids: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
) -> list[Answer]:
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    width = max(map(len, ids))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    noise = [PerRowNoise(sampling.temperature, seeds)] if sampling.temperature else []
    out = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        logits_processor=LogitsProcessorList(noise),
        do_sample=False,
        use_cache=True,
        # greedy search has none of these; a model's own defaults would only cause warnings
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=stops or None,
        pad_token_id=pad,
    )
    return [_answer(tokenizer, row, stops) for row in out[:, width:].tolist()]


def _answer(tokenizer: Any, tokens: list[int], stops: Sequence[int]) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return Answer(tokenizer.decode(kept, skip_special_tokens=True).strip(), tuple(kept), end is None)
