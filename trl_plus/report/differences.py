"""Differences between runs: what makes their figures incomparable, and the keys of their recipes."""

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from trl_plus.methods import METHODS
from trl_plus.report.run import Run

# Keys that decide which rows are trained on
_DATA = ("dataset_name", "dataset_config", "dataset_train_split", "datasets", "converter", "columns", "balance")
# Keys that are part of a reward, and keys that are part of a loss but of no reward
_REWARD = ("loss_type", "beta", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "ipo_reduction")
_LOSS = (
    "label_smoothing", "gamma", "gamma_beta_ratio", "margin_scale", "sft_weight", "loss_weights", "discopop_tau",
    "cpo_alpha", "desirable_weight", "undesirable_weight", "use_weighting", "odds", "nll_scope", "nll_reduction",
)  # fmt: skip
_NAMED = 4  # values that a sentence names


def method_of(run: Run) -> str:
    """The name of a run's method; "" if it is not known."""
    return str(run.value("method") or run.summary.get("method") or "")


def effective(run: Run, key: str) -> str | None:
    """A value of the recipe, as JSON, or the default of its method; None if neither is known."""
    import yaml

    from trl_plus.recipes.keys import keys_of

    text, method = run.value(key), METHODS.get(method_of(run))
    if text is None:
        known = keys_of(method).get(key) if method else None
        return None if known is None else json.dumps(known.default, default=str)
    try:
        return json.dumps(yaml.safe_load(text), default=str)
    except yaml.YAMLError:
        return json.dumps(text)


def differing(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Those of the keys whose effective values differ between the runs."""
    return [key for key in keys if len({effective(run, key) for run in runs}) > 1]


def held_out_groups(runs: Sequence[Run]) -> list[str]:
    """A letter for each run: runs with one letter have the same held-out rows. "" for a run without any.

    Rows are compared by their digest. Without one (a stream, an earlier version), by dataset and number of rows.
    """
    found: dict[Any, str] = {}
    letters = []
    for run in runs:
        rows, digest = run.summary.get("held_out_rows", 0), run.summary.get("held_out_digest")
        if rows == 0 and not any("eval_loss" in line for line in run.log):
            letters.append("")
            continue
        key = digest or (run.summary.get("dataset"), rows)
        letters.append(found.setdefault(key, _letter(len(found))))
    return letters


def _letter(number: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    turn, place = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(turn + 1) if turn else "")


def cautions(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Sentences about figures and curves of these runs that cannot be compared."""
    found = []
    who = "two runs" if len(runs) == 2 else "runs"
    same_rows = len(set(held_out_groups(runs)) - {""}) <= 1
    accuracies = ": only accuracies can be compared." if same_rows else "."
    if not same_rows:
        found.append(f"The {who} have different held-out rows: their figures cannot be compared.")
    data = differing(runs, _DATA)
    if data:
        values = "; ".join(f"`{key}` is {_values(names, runs, key)}" for key in data)
        found.append(f"The {who} were trained on different data: {values}.")
    elif len(rows := _training_rows(runs)) > 1:
        counts = " or ".join(f"{count:,}" for count in sorted(rows))
        found.append(f"The {who} were trained on different data: the training split had {counts} rows.")
    if len({method_of(run) for run in runs}) > 1:
        found.append(f"Rewards and losses of different methods have different units{accuracies}")
    elif reward := differing(runs, _REWARD):
        found.append(f"Rewards, margins and losses depend on {_keys(reward)}{accuracies}")
    elif loss := differing(runs, _LOSS):
        found.append(f"Losses depend on {_keys(loss)}{': compare accuracies and margins.' if same_rows else '.'}")
    return found


def _keys(keys: Sequence[str]) -> str:
    return " and ".join(f"`{key}`" for key in keys) + f", which {'differs' if len(keys) == 1 else 'differ'}"


def _values(names: Sequence[str], runs: Sequence[Run], key: str) -> str:
    groups: dict[str | None, list[str]] = {}
    for name, run in zip(names, runs, strict=True):
        groups.setdefault(effective(run, key), []).append(name)
    words = []
    for value, those in list(groups.items())[:_NAMED]:
        shown = "not known" if value is None else value.strip('"')[:80]
        words.append(f"{shown} in {', '.join(those[:_NAMED])}{' and others' if len(those) > _NAMED else ''}")
    return ", ".join(words) + (", and more" if len(groups) > _NAMED else "")


def _training_rows(runs: Sequence[Run]) -> set[int]:
    """Numbers of training rows that preflight counted."""
    splits = [split for run in runs if run.preflight for split in run.preflight.splits]
    return {split.rows for split in splits if split.name == "train" and split.rows is not None}
