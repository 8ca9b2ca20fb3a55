"""What the keys of the best checkpoint and of early stopping need of each other, said before anything is loaded."""

from collections.abc import Iterator, Mapping
from typing import Any

from trl_plus.methods import Method
from trl_plus.recipes.keys import keys_of


def best_model_problems(method: Method, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each problem. Values that are not given have their defaults."""
    read = _reader(method, values)
    if read("early_stopping_patience") is not None and not (
        read("load_best_model_at_end") or read("metric_for_best_model")
    ):
        yield (
            "early_stopping_patience",
            "`early_stopping_patience` waits for a metric to improve: add `load_best_model_at_end: true` and "
            f"`metric_for_best_model: rewards/{'accuracies' if method.paired else 'margins'}`.",
        )
    if not read("load_best_model_at_end"):
        return
    evaluates, saves = read("eval_strategy"), read("save_strategy")
    if evaluates == "no":
        yield (
            "load_best_model_at_end",
            "`load_best_model_at_end` compares evaluations during training: add `eval_strategy: steps` and "
            "`eval_steps`.",
        )
    elif saves not in (evaluates, "best"):
        yield (
            "load_best_model_at_end",
            f"`load_best_model_at_end` needs a checkpoint of what was evaluated: `eval_strategy` is {evaluates}, so "
            f"write `save_strategy: {evaluates}` or `save_strategy: best` instead of {saves}.",
        )
    elif evaluates == saves == "steps" and not _is_multiple(read("save_steps"), _eval_steps(read)):
        yield (
            "load_best_model_at_end",
            f"`load_best_model_at_end` needs a checkpoint of what was evaluated: `save_steps` is {read('save_steps')}, "
            f"so write a multiple of `eval_steps`, which is {_eval_steps(read)}; the same number is best.",
        )


def best_model_notes(method: Method, values: Mapping[str, Any]) -> list[str]:
    """What the reader of a valid recipe should know."""
    read = _reader(method, values)
    if not read("load_best_model_at_end") or not read("eval_strategy") == read("save_strategy") == "steps":
        return []
    evaluates, saves = _eval_steps(read), read("save_steps")
    if evaluates == saves:
        return []
    return [
        f"Evaluations come every {evaluates} steps and checkpoints every {saves}: where the best evaluation has no "
        "checkpoint, an older one is loaded at the end. With save_steps = eval_steps every one has."
    ]


def _reader(method: Method, values: Mapping[str, Any]) -> Any:
    keys = keys_of(method)
    return lambda name: values.get(name, keys[name].default)


def _eval_steps(read: Any) -> Any:
    steps = read("eval_steps")
    return read("logging_steps") if steps is None else steps


def _is_multiple(saves: float, evaluates: float) -> bool:
    """Shares of the run, below 1, are left to transformers, which knows how to compare them."""
    return min(saves, evaluates) < 1 or saves % evaluates == 0
