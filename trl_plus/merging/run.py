"""One merge, from a run to a folder that any server loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor

from trl_plus.errors import DataError, RecipeError, RunFault
from trl_plus.evaluation.models import (
    Scores,
    free,
    is_quantized,
    load_model,
    other_base,
    out_of_memory,
    put_adapter,
    score_rows,
    scorer,
)
from trl_plus.evaluation.rows import HeldOut, held_out_rows
from trl_plus.merging.destination import check_adapter, check_destination, check_space, whole
from trl_plus.preflight.target import stop_ids
from trl_plus.recipes.recipe import Recipe
from trl_plus.runs.model_card import card_text, merged_text
from trl_plus.runs.weights import Weights
from trl_plus.setup.objects import RunObjects, build
from trl_plus.setup.trainer import card_of, load_processor
from trl_plus.trainers.card import CARD, adapter_words

SAMPLES = 4  # sequences whose logits are compared
ROWS = 200  # held-out rows that a quantized run's three models are scored on, at most
_NO_MEMORY = "merging takes 4 bytes a parameter; set CUDA_VISIBLE_DEVICES= to merge on the CPU"
_TEXT = "The quick brown fox jumps over the lazy dog. 1, 2, 3: what comes next?"
ORIGINAL, DEQUANTIZED = "original", "dequantized"
# Of the largest logit: float32 has seven digits, and a merge adds the same terms in another order
TOLERANCE = 1e-4
AS_TRAINED = "adapter, as trained"
NAMES = {DEQUANTIZED: "merged, dequantized base", ORIGINAL: "merged, original base"}


@dataclass(frozen=True)
class Gap:
    """The largest difference between two models' logits, beside the largest logit."""

    difference: float
    largest: float

    @property
    def passes(self) -> bool:
        """True within TOLERANCE: absolute, or relative to the largest logit if that is above 1. False for NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


@dataclass(frozen=True)
class Merged:
    """The written model, and how it compares with the adapter.

    Attributes:
        merging: logits of the merged float32 weights against the adapter's.
        rounding: logits of the written weights against the adapter's, both computed in float32; None if float32
            was written.
        samples: sequences compared, of `rows`; a fixed text if those are None.
        scores: for a quantized run, name of a model -> its scores of `rows`; {} if nothing is held out.
    """

    path: Path
    dtype: str
    bytes: int
    merging: Gap
    rounding: Gap | None
    samples: int
    rows: HeldOut | None
    scores: dict[str, Scores]


def merge(
    recipe: Recipe,
    weights: Weights,
    destination: str,
    dtype: str | None,
    max_shard_size: str,
    base: str | None,
    say: Callable[[str], None],
) -> Merged:
    """Merge a run's adapter into its base and write the model with its tokenizer and generation config.

    Args:
        dtype: of the written weights; None for that of the base in training.
        base: ORIGINAL or DEQUANTIZED; None for the weights that the adapter was trained on.

    Raises:
        RecipeError, DataError: there is no adapter, the destination is taken, or something cannot be loaded.
        RunFault: the merged model's logits are not the adapter's, or the disk is full. Nothing is left behind.
    """
    check_adapter(weights)
    path = check_destination(destination)
    objects = build(recipe)
    base, quantized = _base(objects, base)
    processor = load_processor(objects)
    if (other := other_base(weights, objects.model.model_name_or_path)) is not None:
        say(other)
    rows = _rows(objects, processor, say)
    samples = _samples(rows, processor)

    with out_of_memory(_NO_MEMORY):
        model, trained_in = adapted_model(objects, weights, base)
    before = logits_of(model, samples)
    model = merged(model)
    merging = gap_between(before, logits_of(model, samples))
    require(merging, "The merged model")
    written = getattr(torch, dtype) if dtype else trained_in
    model.to(written)
    _align(model, processor, objects)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    check_space(path, size, halves=written == torch.float32)
    with whole(path) as part:
        model.save_pretrained(part, max_shard_size=max_shard_size)
        processor.save_pretrained(part)
        write_card(part, objects, weights, path.name, name_of(written), quantized and base == DEQUANTIZED)
        del model
        free()
        read = load_model(objects, str(part), quantized=False, dtype="auto").float().eval()
        rounding = gap_between(before, logits_of(read, samples))
        if written == torch.float32:
            require(rounding, "The written model")
    return Merged(
        path=path,
        dtype=name_of(written),
        bytes=size,
        merging=merging,
        rounding=None if written == torch.float32 else rounding,
        samples=len(samples),
        rows=rows,
        scores=_compare(objects, weights, rows, base, read) if quantized and rows is not None else {},
    )


def name_of(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _base(objects: RunObjects, asked: str | None) -> tuple[str, bool]:
    """The base to merge into, and whether the run's was quantized."""
    quantized = bool(objects.model.load_in_4bit or objects.model.load_in_8bit)
    if asked == DEQUANTIZED and not quantized:
        raise RecipeError("--base dequantized: the run's base was not quantized, so there is one base only: remove it.")
    return asked or (DEQUANTIZED if quantized else ORIGINAL), quantized


def _rows(objects: RunObjects, processor: Any, say: Callable[[str], None]) -> HeldOut | None:
    """Held-out rows to compare on; None, and a sentence why, if there are none."""
    try:
        return held_out_rows(objects, processor, ROWS, None)
    except (DataError, RecipeError) as error:
        say(f"The models are compared on a fixed text: {error}")
        return None


def _samples(rows: HeldOut | None, processor: Any) -> list[list[int]]:
    if rows is None:
        return [getattr(processor, "tokenizer", processor)(_TEXT)["input_ids"]]
    _, batch = next(rows.batches(SAMPLES))
    masks = batch["attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], masks, strict=True)][:SAMPLES]


def _align(model: Any, processor: Any, objects: RunObjects) -> None:
    """The end and padding tokens that training put into the generation config."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ends = sorted(stop_ids(tokenizer, objects.model.model_name_or_path, objects.model.model_revision))
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if tokenizer.pad_token_id is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _compare(objects: RunObjects, weights: Weights, rows: HeldOut, base: str, written: Any) -> dict[str, Scores]:
    """Scores of the adapter as it was trained, and of both ways to merge it; one model is held at a time."""
    size = objects.args.per_device_eval_batch_size
    found = {base: score_rows(scorer(objects, written), rows, size, None)}
    del written
    free()
    other = ORIGINAL if base == DEQUANTIZED else DEQUANTIZED
    adapted, dtype = adapted_model(objects, weights, other)
    found[other] = score_rows(scorer(objects, merged(adapted).to(dtype)), rows, size, None)
    del adapted
    free()
    quantized = load_model(objects, objects.model.model_name_or_path, quantized=True)
    trained = scorer(objects, put_adapter(quantized, weights, quantized=True))
    as_trained = score_rows(trained, rows, size, None)
    return {AS_TRAINED: as_trained, **{NAMES[name]: found[name] for name in (DEQUANTIZED, ORIGINAL)}}


# -- the model card -----------------------------------------------------------------------------------------------


def merged_card(objects: RunObjects, weights: Weights, name: str, dtype: str, dequantized: bool) -> str:
    """The card's text. An adapter without a card of ours gets what the recipe tells of it: no rows, no metrics.

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
    """Write `merged_card` into the folder of the merged model."""
    (folder / CARD).write_text(merged_card(*merged), encoding="utf-8")


def adapted_model(objects: RunObjects, weights: Weights, base: str) -> tuple[Any, torch.dtype]:
    """The adapter on its base in float32, and the dtype that the base was trained in.

    Args:
        base: ORIGINAL weights, or DEQUANTIZED: what the run's 4 or 8 bits stand for, which is what the adapter was
            trained around.

    Raises:
        RecipeError: the base or the adapter cannot be loaded, or the adapter has no merged form.
    """
    model = load_model(objects, objects.model.model_name_or_path, quantized=base == DEQUANTIZED)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if is_quantized(model):
        model = model.dequantize(dtype=torch.float32)
    model = put_adapter(model.float(), weights, quantized=False).float()
    _untie(model.get_base_model())
    if not hasattr(model, "merge_and_unload") or model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type.value
        raise RecipeError(f"{weights.path} is an adapter of type {kind}, which has no merged form: serve it as it is.")
    return model.eval(), dtype


def _untie(model: Any) -> None:
    """Give the LM head separate weights if an adapter changes the embeddings that it shares.

    The head computes with the shared matrix as it was; merging into that matrix would move the head, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    if not isinstance(model.get_input_embeddings(), BaseTunerLayer) or isinstance(head, BaseTunerLayer):
        return
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def merged(adapted: Any) -> Any:
    """The base model with the adapter merged into its weights; `adapted` is used up."""
    return adapted.merge_and_unload(safe_merge=True)


def logits_of(model: Any, samples: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T, V) for each sequence of token ids, on the CPU."""
    with torch.no_grad():
        return [model(torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in samples]


def gap_between(a: Sequence[Tensor], b: Sequence[Tensor]) -> Gap:
    """The largest difference between logits of the same samples."""
    differences = torch.stack([(x - y).abs().max() for x, y in zip(a, b, strict=True)])
    return Gap(float(differences.max()), max(float(x.abs().max()) for x in a))


def require(gap: Gap, what: str) -> None:
    """Raise a RunFault if logits that should be the same differ."""
    if not gap.passes:
        raise RunFault(
            f"{what} differs from the adapter by up to {gap.difference:.2g} in its logits (the largest is "
            f"{gap.largest:.3g}): nothing was written. Serve the adapter itself, and report this with `trl-plus env`."
        )
