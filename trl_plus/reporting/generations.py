"""Answers to a few held-out prompts, generated before and after training and printed side by side."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rich.table import Table
from rich.text import Text

from trl_plus.data.responses import is_conversation, sides_of, split_response
from trl_plus.reporting.printable import printable
from trl_plus.reporting.report import Sample

MAX_NEW_TOKENS = 48
Prompt = str | list[dict[str, Any]]


def held_out_prompts(dataset: Any, count: int) -> list[Prompt]:
    """`count` different prompts, evenly spread over a dataset in any format; the first ones of a stream."""
    prompts: list[Prompt] = []
    for row in _spread(dataset, count):
        prompt = _prompt(dict(row))
        if prompt not in prompts:
            prompts.append(prompt)
        if len(prompts) == count:
            break
    return prompts


def _spread(dataset: Any, count: int) -> Iterator[Any]:
    """The middle row of each of `count` equal parts, then other rows for where a prompt comes up again."""
    if not hasattr(dataset, "__len__"):
        yield from islice(iter(dataset), 20 * count)
        return
    rows = len(dataset)
    middles = [rows * (2 * part + 1) // (2 * count) for part in range(count)]
    yield from (dataset[index] for index in (*middles, *range(min(rows, 20 * count))))


def _prompt(row: dict[str, Any]) -> Prompt:
    sides = sides_of(list(row))
    if is_conversation(row[sides[0]]):
        return split_response(row, sides)["prompt"]
    if "prompt" in row:
        return row["prompt"]
    from trl import extract_prompt

    return extract_prompt(row)["prompt"]


def generate(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers of at most MAX_NEW_TOKENS tokens, in one left-padded batch.

    The model's training mode is restored; no random number is drawn.
    """
    import torch

    chat = not isinstance(prompts[0], str)
    texts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) if chat else prompt
        for prompt in prompts
    ]
    # a chat template writes the special tokens itself
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not chat).to(
        model.device
    )
    training = model.training
    model.eval()
    with torch.no_grad():
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            use_cache=True,
            # greedy search has none of these; a model's own defaults would only cause warnings
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(training)
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def generations_table(samples: Sequence[Sample]) -> Table:
    """Prompts and answers side by side."""
    table = Table(title="Held-out prompts, greedy answers", title_justify="left", show_lines=True)
    for title in ("prompt", "before", "after"):
        table.add_column(title, ratio=1, overflow="fold")
    for sample in samples:
        # Text, not str: square brackets in an answer are no markup
        table.add_row(*(Text(printable(part or "-")) for part in (sample.prompt, sample.before, sample.after)))
    return table


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a person reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
