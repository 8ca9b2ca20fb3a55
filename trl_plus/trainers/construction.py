"""What is different while TRL's constructors run: no reference where a method has none, no KL rows fixed in advance."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl_plus.compat import TRLKTOConfig


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
