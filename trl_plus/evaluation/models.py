"""Models loaded as the trainer loads them, and held-out completions scored by them."""

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trl_plus.errors import RecipeError, RunFault, first_line
from trl_plus.evaluation.rows import HeldOut
from trl_plus.evaluation.statistics import Floats
from trl_plus.forward.lm_head import CompletionHead, Unscorable
from trl_plus.forward.rope import own_factors
from trl_plus.forward.score import score
from trl_plus.objectives import Completions
from trl_plus.runs.weights import Weights, changed_base
from trl_plus.setup.objects import RunObjects
from trl_plus.trainers import outside
from trl_plus.trainers.adapters import keep_trainable
from trl_plus.upstream.models import base_model


@dataclass(frozen=True)
class Scorer:
    """A model that is ready to score completions (`trl_plus.forward.score.score`), and how its run computes.

    Attributes:
        model: in evaluation mode; a PEFT model has its adapter on.
        autocast: the dtype of the run's mixed precision, or None.
    """

    model: Any
    device: torch.device
    autocast: torch.dtype | None

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Context of the forward passes: no gradient, the run's mixed precision."""
        mixed = nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)
        with torch.no_grad(), mixed:
            yield


def load_model(objects: RunObjects, name: str, quantized: bool, dtype: Any = None) -> Any:
    """A model with the recipe's loading arguments, as TRL's trainers load it.

    Args:
        quantized: in the recipe's 4 or 8 bits, if it asks for them.
        dtype: instead of the recipe's.

    Raises:
        RecipeError: it cannot be loaded.
    """
    from trl import get_quantization_config
    from trl.trainer.utils import create_model_from_path

    kwargs = {"trust_remote_code": objects.args.trust_remote_code, **(objects.args.model_init_kwargs or {})}
    if name != objects.model.model_name_or_path:
        kwargs.pop("revision", None)  # of another repository
    config = get_quantization_config(objects.model) if quantized else None
    if config is not None:
        kwargs["quantization_config"] = config
    if dtype is not None:
        kwargs["dtype"] = dtype
    try:
        model = create_model_from_path(name, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"The model {name} could not be loaded: {first_line(error)}") from error
    keep_trainable(model)  # its 4-bit weights are those of training
    return model


def put_adapter(model: Any, weights: Weights, quantized: bool) -> Any:
    """The model with a trained adapter on it, in the dtypes that it was trained in.

    Raises:
        RecipeError: the adapter cannot be read, or does not fit the model.
    """
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, weights.path)
        outside.read(adapted, weights.path)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"The adapter {weights.path} does not fit the model: {first_line(error)} Name the model that it was "
            "trained on (model_name_or_path)."
        ) from error
    if quantized:  # TRL trains such adapters in bfloat16, but for DoRA's magnitudes
        for name, parameter in adapted.named_parameters():
            if ".default" in name and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    return adapted


def scorer(objects: RunObjects, model: Any) -> Scorer:
    """A loaded model made ready to score completions as the run's trainer does."""
    from trl.trainer.utils import add_fused_lm_head

    args = objects.args
    inner = base_model(model)
    add_fused_lm_head(inner)
    CompletionHead(inner).statistics = False
    own_factors(inner)
    if args.bf16_full_eval or args.fp16_full_eval:
        model.to(torch.bfloat16 if args.bf16_full_eval else torch.float16)
    if not is_quantized(inner) and inner.device.type != args.device.type:
        model.to(args.device)
    mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return Scorer(model.eval(), inner.device, mixed)


def is_adapter(weights: Weights) -> bool:
    """True if weights are an adapter. Those on the hub are looked up there."""
    if weights.adapter is not None:
        return weights.adapter
    from peft import PeftConfig

    try:
        PeftConfig.from_pretrained(weights.path)
    except Exception:  # the hub client raises many unrelated types; a full model has no such file
        return False
    return True


def other_base(weights: Weights, name: str) -> str | None:
    """A sentence if a local adapter was trained on another base than `name`, which it is put on."""
    config = Path(weights.path, "adapter_config.json")
    if not weights.adapter or not config.is_file():
        return None
    trained_on: str = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or name
    same = trained_on == name or Path(trained_on).absolute() == Path(name).absolute()
    if same:
        return changed_base(Path(weights.path), name)
    return f"The adapter was trained on {trained_on} and is put on {name} here."


def is_quantized(model: Any) -> bool:
    """True if a model's weights are in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


@contextmanager
def out_of_memory(cure: str) -> Iterator[None]:
    """Turn a lack of memory into a RunFault that names the fix."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        raise RunFault(f"Out of memory: {cure}.") from error


def free() -> None:
    """Release the memory of models that are no longer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- held-out completions under a model: one pass over the trainer's evaluation batches -----------------------------


Reward = Callable[[Completions], torch.Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Scores:
    """One model's scores of C completions.

    Attributes:
        total: (C,), the sum of log-probabilities over the completion's tokens, in nats.
        length: (C,), how many tokens that is, after cutting to `max_length`.
        reward: (C,), the method's reward; None if it is not defined (the reference itself).
    """

    total: Floats
    length: Floats
    reward: Floats | None = None

    @property
    def per_token(self) -> Floats:
        """(C,), the mean log-probability of a token, in nats; 0 for an empty completion."""
        return self.total / np.maximum(self.length, 1)


def score_rows(
    scorer: Scorer,
    held_out: HeldOut,
    batch_size: int,
    reward: Reward | None,
    reference: Scores | None = None,
    advance: Advance = lambda rows: None,
) -> Scores:
    """Score every held-out completion in the trainer's own batches.

    Args:
        reward: the method's reward (`Trainer.reward_of`); None for no rewards.
        reference: the reference's scores of the same completions, for a reward that compares.
        advance: called after each batch with the number of rows done so far.

    Raises:
        RunFault: a log-probability is not finite, or the model has none.
    """
    count = len(held_out.labels)
    total, length, rewards = np.zeros(count), np.zeros(count), np.zeros(count)
    done = 0
    for index, batch in held_out.batches(batch_size):
        inputs = {name: value.to(scorer.device) for name, value in batch.items()}
        ref = None
        if reference is not None:
            ref = torch.tensor(reference.total[index], dtype=torch.float32, device=scorer.device)
        with scorer.passes():
            try:
                side = score(scorer.model, inputs).rows(slice(None), ref)
            except Unscorable as error:
                raise RunFault(str(error)) from error
            total[index], length[index] = _array(side.total), _array(side.length)
            if reward is not None:
                rewards[index] = _array(reward(side))
        done += len(index) // (2 if held_out.paired else 1)
        advance(done)
    if not np.isfinite(total).all():
        raise RunFault(
            f"{int((~np.isfinite(total)).sum())} of {count} completions have a log-probability that is not finite, so "
            "nothing can be averaged: the weights are damaged, or overflow in this dtype (try bfloat16 or float32)."
        )
    return Scores(total, length, None if reward is None else rewards)


def _array(values: torch.Tensor) -> Floats:
    return values.double().cpu().numpy()
