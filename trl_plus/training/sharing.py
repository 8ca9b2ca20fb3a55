"""Rows that the runs of one process share: loaded, looked at, tokenized. Imports no torch."""

from collections.abc import Callable
from typing import Any

from trl_plus.recipes.recipe import Recipe

# Keys that no row depends on. Runs that differ in any other key share nothing: a key that is missing here costs time
_NO_ROW = {
    "output_dir", "seed", "data_seed", "learning_rate", "weight_decay", "max_grad_norm", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "beta", "gamma", "gamma_beta_ratio", "sft_weight", "cpo_alpha", "label_smoothing", "loss_type",
    "loss_weights", "desirable_weight", "undesirable_weight", "odds", "nll_scope", "ipo_reduction",
    "discopop_tau", "use_peft", "use_rslora", "use_dora", "nonfinite", "max_nonfinite_skips",
    "gradient_checkpointing", "report_generations", "run_name", "precompute_ref_log_probs", "report_to",
    "disable_tqdm", "tokens_per_device", "layout", "save_strategy", "save_steps", "save_total_limit",
    "logging_steps", "eval_strategy", "eval_steps",
}  # fmt: skip
_NO_ROW_PREFIXES = ("adam_", "lora_", "optim", "warmup_", "lr_scheduler_", "early_stopping_")


def rows_key(recipe: Recipe, request: Any) -> str:
    """Equal texts for recipes whose rows are made alike.

    Args:
        request: the recipe's data keys. Its seed is the one that draws rows.
    """
    values = {
        name: value
        for name, value in recipe.values.items()
        if name not in _NO_ROW and not name.startswith(_NO_ROW_PREFIXES)
    }
    return repr((recipe.method.family.name, sorted(values.items()), request))


class Shared:
    """Objects by what they are made of."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Any] = {}

    def once(self, key: str, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when it was first called for this key and name."""
        if (key, name) not in self._found:
            self._found[key, name] = make()
        return self._found[key, name]
