"""The best checkpoint, and stopping when it stays the best. transformers does both; a resumed run goes on waiting here.

Imported only when a run starts, since it needs transformers.
"""

from collections.abc import Iterator
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from trl_plus.errors import RecipeError
from trl_plus.recipes.options import RunOptions


def best_model_callbacks(options: RunOptions) -> list[TrainerCallback]:
    """What watches `metric_for_best_model`."""
    patience = options.early_stopping_patience
    early = [] if patience is None else [EarlyStop(patience, options.early_stopping_threshold)]
    return [KnownMetric(), *early]


class KnownMetric(TrainerCallback):
    """Refuses a `metric_for_best_model` that no evaluation has, at the first one: of a fresh run, before step 1."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        asked = args.metric_for_best_model
        if asked is None or not metrics or _logged(asked) in metrics:
            return
        known = [name.removeprefix("eval_") for name in metrics if not name.endswith(("_runtime", "_per_second"))]
        raise RecipeError(
            f"`metric_for_best_model: {asked}` is no metric of this run: write one of "
            f"{', '.join(name for name in known if name not in ('epoch', 'num_tokens'))}."
        )


class EarlyStop(EarlyStoppingCallback):
    """transformers' early stopping. A resumed run has waited as long as the one it continues.

    transformers restores callbacks only under `restore_callback_states_from_checkpoint`, and then with the patience of
    the old recipe. A run that had stopped makes no step more, unless its patience was raised.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        for one in saved if isinstance(saved, list) else [saved]:
            if one is not None:
                self.early_stopping_patience_counter = one["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def how_it_ended(trainer: Any) -> Iterator[str]:
    """Sentences on an early stop, and on which weights a run ends with where those are not the last."""
    args, state = trainer.args, trainer.state
    if args.metric_for_best_model is None:
        return
    best = f"{_logged(args.metric_for_best_model)} was best at step {state.best_global_step}"
    if state.global_step < state.max_steps:
        yield f"Stopped early at step {state.global_step:,} of {state.max_steps:,}: {best} ({state.best_metric:.4g})."
    step = step_of_weights(trainer)
    if step != state.global_step:
        yield f"The model is that of step {step:,}: {best}."


def step_of_weights(trainer: Any) -> int:
    """The optimizer step of the weights that a run ends with."""
    state = trainer.state
    loaded = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return int(str(state.best_model_checkpoint).rpartition("-")[2]) if loaded else int(state.global_step)


def _logged(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"
