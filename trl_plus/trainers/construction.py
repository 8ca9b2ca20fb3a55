"""What is different while TRL's constructors run: no reference where a method has none, no KL rows fixed in advance."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trl_plus.compat import TRLKTOConfig


def refuse_wrong_kinds(ref_model: Any, data_collator: Any) -> None:
    """Raises a TypeError for a reference or a collator that would only fail in the first step."""
    if isinstance(ref_model, str):
        raise TypeError(
            f"`ref_model` is the path {ref_model!r}. Fix: load it with "
            f"AutoModelForCausalLM.from_pretrained({ref_model!r}) and pass the model."
        )
    if ref_model is not None and not isinstance(ref_model, nn.Module):
        kind = ref_model.__name__ if isinstance(ref_model, type) else type(ref_model).__name__
        raise TypeError(f"`ref_model` is {_a(ref_model, kind)} and not a model. Fix: pass a causal language model.")
    if isinstance(ref_model, PreTrainedModel) and ref_model.get_output_embeddings() is None:
        raise TypeError(
            f"`ref_model` is a {type(ref_model).__name__}, which has no LM head and gives no log-probabilities. "
            "Fix: pass a causal language model."
        )
    if isinstance(data_collator, type):
        raise TypeError(f"`data_collator` is the class {data_collator.__name__}. Fix: pass an instance of it.")
    if data_collator is not None and not callable(data_collator):
        raise TypeError(
            f"`data_collator` is {_a(data_collator, type(data_collator).__name__)}, which cannot be called. Fix: pass "
            "a function or an object that makes a batch of a list of rows."
        )


def _a(thing: Any, kind: str) -> str:
    if isinstance(thing, type):
        return f"the class {kind}"
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


@contextmanager
def no_reference_model(policy_is_a_path: bool) -> Iterator[None]:
    """Within this context, TRL's DPOTrainer builds no reference model.

    Its constructor has no option for it: without PEFT it loads one (or hashes the policy, when it precomputes). All
    loading goes through one function, called for the policy (where that is given as a path) and then for the reference;
    here that second call answers None, which the rest of the constructor understands as "no reference". Nothing is
    loaded, copied or hashed, whatever the engine.
    """
    from trl.trainer import dpo_trainer

    load = dpo_trainer.create_model_from_path
    loads_left = 1 if policy_is_a_path else 0

    def load_policy_only(*args: Any, **kwargs: Any) -> Any:
        nonlocal loads_left
        loads_left -= 1
        return load(*args, **kwargs) if loads_left >= 0 else None

    dpo_trainer.create_model_from_path = load_policy_only
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = load


@contextmanager
def no_fixed_kl_rows(args: TRLKTOConfig) -> Iterator[None]:
    """Within this context, TRL's KTOTrainer is built as for a loss without a KL term.

    It then neither rotates completions inside the dataset map nor asks for a sequential order and a batch above one
    row; our trainer draws the mismatched completions itself, inside each effective batch.
    """
    loss_type, args.loss_type = args.loss_type, "apo_zero_unpaired"
    try:
        yield
    finally:
        args.loss_type = loss_type
