"""Changes to TRL's constructors while they run.

No reference is loaded if a method has none, KTO's mismatched rows are not fixed in advance, and a given adapter is
copied by PEFT's structure instead of by names.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftMixedModel
from torch import nn
from transformers import PreTrainedModel

from trl_plus.trainers.adapters import add_copy, check_given, holds_a_copy
from trl_plus.upstream.compat import TRLKTOConfig
from trl_plus.upstream.models import base_model, is_peft, uncompiled

logger = logging.getLogger("trl_plus")


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


def refuse_wrong_model(model: Any) -> None:
    """Raises a TypeError for a policy that is not a decoder with an LM head; a path is looked at when it is loaded."""
    if isinstance(model, str):
        return
    kind = model.__name__ if isinstance(model, type) else type(uncompiled(model)).__name__
    fix = "Fix: pass a path, a causal language model of transformers, or a PeftModel of one."
    if isinstance(model, PeftMixedModel):
        raise TypeError(f"`model` is a {kind}, of which PEFT trains nothing by itself. Fix: pass a PeftModel.")
    if not isinstance(model, nn.Module) or getattr(base_model(model), "config", None) is None:
        raise TypeError(f"`model` is {_a(model, kind)} and not a model of transformers. {fix}")
    inner = uncompiled(base_model(model))
    name = type(inner).__name__
    if isinstance(inner, PreTrainedModel) and not hasattr(inner, "generation_config"):
        raise TypeError(
            f"`model` is {_a(inner, name)}, which cannot generate text and gives no log-probabilities. {fix}"
        )
    if getattr(inner.config, "is_encoder_decoder", False):
        raise TypeError(f"`model` is {_a(inner, name)}, an encoder with a decoder. {fix}")


# Methods of earlier TRL trainers that subclasses have overridden, and what took their place
_UNCALLED = {
    **dict.fromkeys(("dpo_loss", "cpo_loss", "simpo_loss", "odds_ratio_loss"), "`pair_losses`"),
    **dict.fromkeys(("kto_loss", "get_batch_loss_metrics", "get_batch_logps"), "`compute_loss`"),
    **dict.fromkeys(("concatenated_forward", "concatenated_inputs"), "`compute_loss`"),
    **dict.fromkeys(("tokenize_row", "process_row", "build_tokenized_answer"), "a dataset of tokenized rows"),
    **dict.fromkeys(("compute_reference_log_probs", "null_ref_context"), "`compute_ref_log_probs`"),
    "store_metrics": "`log`",
}


def warn_of_uncalled(trainer: type) -> None:
    """Warns of methods of earlier TRL versions that a subclass overrides: no trainer calls them any more."""
    ours = next(index for index, kind in enumerate(trainer.__mro__) if kind.__module__.startswith("trl_plus."))
    below = trainer.__mro__[ours]
    found = {name for kind in trainer.__mro__[:ours] for name in vars(kind) if name in _UNCALLED}
    found = sorted(name for name in found if not hasattr(below, name))
    if found:
        instead = " and ".join(dict.fromkeys(_UNCALLED[name] for name in found))
        logger.warning(
            "%s defines %s, which earlier versions of TRL called and this one does not. Fix: use %s instead.",
            trainer.__name__,
            ", ".join(f"`{name}`" for name in found),
            instead,
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


@contextmanager
def own_reference_adapter(model: Any, reference: bool, given: Any = None) -> Iterator[None]:
    """Within this context, TRL's constructors leave the reference of a given PEFT model to us.

    Given a PEFT model and no `ref_model`, they look up the adapter "default", add a second one, "ref", and copy the
    weights that have ".default." in their names: an adapter of another name is a KeyError, and weights whose names end
    in ".default" are not copied. Here that adapter is found under any name, their request is answered by
    `adapters.add_copy` if PEFT can hold a copy, and their own copying does nothing.

    Args:
        reference: the method has one.
        given: the `ref_model`, if there is one: TRL then adds no adapter.
    """
    if is_peft(model):
        check_given(model, reference and given is None)
    if not is_peft(model) or given is not None:
        yield
        return
    configs, restored = model.peft_config, {}
    if "default" not in configs:
        configs["default"] = restored["default"] = configs[model.active_adapters[0]]

    def restore() -> None:
        if restored and configs.get("default") is restored.pop("default"):
            del configs["default"]

    def add(name: str, config: Any) -> None:
        restore()
        del model.add_adapter
        if reference and holds_a_copy(model):
            add_copy(model)

    find = model.get_parameter
    model.add_adapter, model.get_parameter = add, lambda name: find(name.replace(".ref.", ".default."))
    try:
        yield
    finally:
        restore()
        for patched in ("add_adapter", "get_parameter"):
            vars(model).pop(patched, None)
