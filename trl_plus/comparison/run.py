"""Base and tuned model answer the same prompts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from trl_plus.comparison.answers import Answer, Sampling, answers_of
from trl_plus.comparison.prompts import Prompt, as_conversations, held_out_prompts, read_prompts
from trl_plus.data.loading import load
from trl_plus.data.refusals import refuse_rows
from trl_plus.errors import DataError
from trl_plus.evaluation.models import free, is_quantized, load_model, other_base, out_of_memory, put_adapter
from trl_plus.recipes.recipe import Recipe
from trl_plus.runs.weights import Weights
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.trainer import load_processor

BASE, TUNED = "base", "tuned"
HELD_OUT = 20  # prompts if none are named and no number is given
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pair:
    """One prompt and both answers."""

    prompt: Prompt
    base: Answer
    tuned: Answer


@dataclass
class Comparison:
    """The answers of two models.

    Attributes:
        base, tuned: what was loaded, as the recipe or the command line names it.
        source: where the prompts are from.
        notes: what a reader must know.
    """

    base: str
    tuned: str
    source: str
    sampling: Sampling
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    def answers(self, model: str) -> list[Answer]:
        return [pair.base if model == BASE else pair.tuned for pair in self.pairs]


def compare(
    recipe: Recipe,
    weights: Weights,
    prompts: str | None,
    count: int | None,
    raw: bool,
    sampling: Sampling,
    progress: Progress = lambda model, done, total: None,
) -> Comparison:
    """Answers of a run's base model and of its trained weights.

    An adapter is put on the base when that has answered, so that one model is loaded; of a full fine-tune, one model
    after the other.

    Args:
        prompts: a file; None for held-out prompts of the recipe.
        count: at most so many prompts; None for HELD_OUT, or for all of a file.
        raw: take texts as they are, even if the tokenizer has a chat template.

    Raises:
        RecipeError, DataError: a model or the prompts cannot be loaded.
    """
    objects = build(recipe)
    tokenizer = _tokenizer(objects)
    other = other_base(weights, objects.model.model_name_or_path)
    notes = [*objects.recipe.notes, *([other] if other else [])]
    if prompts is None:
        data = recipe["eval_dataset_name"] or recipe["dataset_name"] or objects.data.label  # as the recipe names it
        asked, source = _held_out(objects, count or HELD_OUT), f"held-out rows of {data}"
        if len(asked) < (count or HELD_OUT):
            found = "one prompt: it is" if len(asked) == 1 else f"{len(asked):,} different prompts: all of them are"
            notes.append(f"The held-out rows have {found} answered.")
    else:
        asked, source = read_prompts(prompts, count), prompts
        if tokenizer.chat_template is not None and not raw and any(isinstance(prompt, str) for prompt in asked):
            notes.append(
                "Texts are asked as a user's message, through the chat template; --raw takes them as they are."
            )
            asked = as_conversations(asked)
    _check_template(tokenizer, asked, recipe)
    with out_of_memory(f"lower --batch-size (now {sampling.batch_size})"):
        base, tuned = _both(objects, weights, tokenizer, asked, sampling, progress)
    pairs = [Pair(*row) for row in zip(asked, base, tuned, strict=True)]
    return Comparison(str(recipe["model_name_or_path"]), weights.path, source, sampling, pairs, notes)


def _both(
    objects: RunObjects,
    weights: Weights,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    progress: Progress,
) -> tuple[list[Answer], list[Answer]]:
    def answered(model: Any, name: str) -> list[Answer]:
        with _precision(objects, model):
            return answers_of(model, tokenizer, prompts, sampling, lambda done: progress(name, done, len(prompts)))

    model = load_model(objects, objects.model.model_name_or_path, quantized=True)
    if weights.adapter:
        quantized = objects.model.load_in_4bit or objects.model.load_in_8bit
        base = answered(_placed(objects, model), BASE)  # first: an adapter may bring biases that it trained
        return base, answered(_placed(objects, put_adapter(model, weights, quantized)), TUNED)
    base = answered(_placed(objects, model), BASE)
    del model
    free()
    return base, answered(_placed(objects, load_model(objects, weights.path, quantized=False)), TUNED)


def _placed(objects: RunObjects, model: Any) -> Any:
    """The model on the run's device."""
    if not is_quantized(model) and model.device.type != objects.args.device.type:
        model.to(objects.args.device)
    return model.eval()


def _precision(objects: RunObjects, model: Any) -> AbstractContextManager[Any]:
    """The run's mixed precision."""
    mixed = torch.bfloat16 if objects.args.bf16 else torch.float16 if objects.args.fp16 else None
    return nullcontext() if mixed is None else torch.autocast(model.device.type, dtype=mixed)


def _tokenizer(objects: RunObjects) -> Any:
    """The tokenizer of the run, also if the model has a processor."""
    processor = load_processor(objects)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = getattr(processor, "chat_template", None)
    return tokenizer


def _held_out(objects: RunObjects, count: int) -> list[Prompt]:
    try:
        data = load(objects.data)
    except DataError as error:
        raise DataError(f"{error} Or name a file with --prompts.") from error
    if data.eval is None:
        why = "max_eval_rows is 0" if objects.data.max_eval_rows == 0 else f"{objects.data.label} has no held-out rows"
        raise DataError(f"{why}: name a file with --prompts.")
    try:
        refuse_rows(data.eval, "held-out")
    except ValueError as error:
        raise DataError(str(error)) from error
    return held_out_prompts(data.eval, count)


def _check_template(tokenizer: Any, prompts: Sequence[Prompt], recipe: Recipe) -> None:
    if tokenizer.chat_template is None and not all(isinstance(prompt, str) for prompt in prompts):
        raise DataError(
            f"The prompts are conversations, but the tokenizer of {recipe['model_name_or_path']} has no chat template: "
            "give texts, or set `chat_template_path`."
        )
