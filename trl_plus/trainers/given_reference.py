"""A reference's log-probabilities that the data brings: `ref_chosen_logps` and `ref_rejected_logps`, or `ref_logps`.

They are sums over the tokens of a completion, in nats, as `precompute_ref_log_probs` makes them. A training set that
has them is used as if they had been precomputed, so no reference is loaded. They are checked first: finite, at most 0,
and on a few rows against the model before training.
"""

import logging
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np

from trl_plus.data.responses import SIDES

logger = logging.getLogger("trl_plus")
PAIRED, SINGLE = ("ref_chosen_logps", "ref_rejected_logps"), ("ref_logps",)
FEW = 8  # rows that are compared with the model
# Nats per token, median of those rows: above the first it is another reference, above the second none of such a model
OTHER, IMPLAUSIBLE = 0.05, 1.0
_CLEARLY = 0.1  # a wrong reading of the values fits so many times better than the right one


def columns_of(dataset: Any) -> tuple[str, ...]:
    """The columns of a dataset that hold a reference's log-probabilities; () if it has none.

    Raises:
        ValueError: it has those of one side only.
    """
    known = getattr(dataset, "column_names", None) or ()
    pair = [name for name in PAIRED if name in known]
    if len(pair) == 1:
        other = next(name for name in PAIRED if name not in known)
        raise ValueError(f"The data has `{pair[0]}` and no `{other}`. Fix: add it, or remove `{pair[0]}`.")
    return PAIRED if pair else tuple(name for name in SINGLE if name in known)


def without(dataset: Any) -> Any:
    """A dataset, or a mapping of several, without these columns."""
    if isinstance(dataset, dict):
        return {name: without(part) for name, part in dataset.items()}
    found = columns_of(dataset) if dataset is not None else ()
    return dataset.remove_columns(list(found)) if found else dataset


def without_unused(train_dataset: Any) -> Any:
    """A training set of KTO on full weights without these columns, which is logged if there are any."""
    found = columns_of(train_dataset)
    if found:
        logger.warning(
            "%s of the train dataset are not used: the mismatched rows of KTO need the reference itself, which is in "
            "memory. They are used with an adapter, or with loss_type apo_zero_unpaired.",
            " and ".join(found),
        )
    return without(train_dataset)


def without_reference(train_dataset: Any, owner: str) -> Any:
    """A training set of a method without a reference without these columns, which is logged if there are any."""
    found = columns_of(train_dataset) if train_dataset is not None else ()
    if found:
        logger.warning("%s of the train dataset are not used: %s has no reference.", " and ".join(found), owner)
    return without(train_dataset)


def use_given(args: Any, train_dataset: Any, ref_model: Any, paired: bool) -> bool:
    """Prepare a configuration, before TRL's constructor, for a training set that may bring its reference.

    Returns:
        the training set has the columns, so that no reference is to be loaded.

    Raises:
        ValueError: there are two references, or a moving one.
    """
    found = columns_of(train_dataset)
    if not found or (paired and found != PAIRED):
        return False
    names = " and ".join(f"`{name}`" for name in found)
    if ref_model is not None:
        raise ValueError(
            f"The train dataset brings a reference's log-probabilities ({names}), and `ref_model` is another "
            "reference. Fix: remove the columns, or do not pass `ref_model`."
        )
    if getattr(args, "sync_ref_model", False):
        raise ValueError(
            f"`sync_ref_model` moves the reference, and the train dataset brings log-probabilities of a fixed one "
            f"({names}). Fix: remove the columns or `sync_ref_model`."
        )
    args.precompute_ref_log_probs = True
    return True


def given_rows(trainer: Any, dataset: Any, name: str, compute: Callable[[Any], dict[str, Any]]) -> Any | None:
    """A tokenized dataset that brings its reference's log-probabilities, checked; None if it does not.

    Args:
        trainer: its `reference_is_given` is set if they are another model's.
        compute: the log-probabilities of the model before training, by column, of some rows.

    Raises:
        ValueError: a value is not a number of at most 0, or cannot be one of such a model.
    """
    found = columns_of(dataset)
    if not found:
        return None
    if not isinstance(dataset, datasets.Dataset):
        return dataset  # of a stream nothing is known before it comes; a value that is not finite stops the step
    for column in found:
        check_values(dataset[column], column, name)
    if found == PAIRED and "completion_ids" in dataset.column_names:  # a pair has become two rows
        by_label = zip(dataset["label"], *(dataset[column] for column in PAIRED), strict=True)
        values = [chosen if wanted else rejected for wanted, chosen, rejected in by_label]
        dataset, found = dataset.remove_columns(list(PAIRED)).add_column(SINGLE[0], values), SINGLE
    few = dataset.select(range(min(FEW, len(dataset))))
    ours = compute(few.remove_columns(list(found)))
    gap = check_plausible(few, found, {column: ours[column].double().numpy() for column in found}, name)
    if gap > OTHER:
        trainer.reference_is_given = True  # so the first step need not find the policy in it
        logger.warning(
            "%s of the %s dataset: %.2g nats per token from the model before training (median of %d rows), so the "
            "reference is another model, or rows, chat template or max_length have changed since. Fix: remove the "
            "columns if that is not meant.",
            " and ".join(found),
            name,
            gap,
            len(few),
            extra={"note": True},
        )
    return dataset


def check_values(values: Any, column: str, name: str) -> None:
    """Raises a ValueError that names the first row whose value is not a finite number of at most 0."""
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -np.inf < value <= 0:
            raise ValueError(
                f"`{column}` of row {row} of the {name} dataset is {value!r}: a log-probability is a finite number of "
                f"at most 0. Fix: compute it again, or remove the column {column}."
            )


def check_plausible(few: Any, columns: tuple[str, ...], ours: dict[str, np.ndarray], name: str) -> float:
    """The median distance of some rows' values from the model's, in nats per token.

    Raises:
        ValueError: they are means per token, those of the other side, or further away than `IMPLAUSIBLE`.
    """
    sides = SIDES["paired"] if columns == PAIRED else SIDES["unpaired"]
    given = np.stack([np.array(few[column], float) for column in columns])
    model = np.stack([ours[column] for column in columns])
    tokens = np.stack([np.maximum([len(ids) for ids in few[f"{side}_ids"]], 1) for side in sides])

    def distance(values: np.ndarray) -> float:
        return float(np.median(np.abs(values - model) / tokens))

    gap, fix = distance(given), f"Fix: compute them again, or remove {' and '.join(columns)}."
    if gap <= OTHER:
        return gap
    if distance(given * tokens) < _CLEARLY * gap:
        raise ValueError(
            f"{' and '.join(columns)} of the {name} dataset are means per token, and sums over the tokens are needed. "
            "Fix: multiply them by the tokens of the completion."
        )
    if len(given) == 2 and distance(given[::-1]) < _CLEARLY * gap:
        raise ValueError(f"{' and '.join(columns)} of the {name} dataset are swapped. Fix: rename them.")
    if gap > IMPLAUSIBLE:
        raise ValueError(
            f"{' and '.join(columns)} of the {name} dataset are {gap:.2g} nats per token from the model before "
            f"training (median of {len(few)} rows; {given[0, 0]:.1f} instead of {model[0, 0]:.1f} in the first): they "
            f"are of other rows, another tokenizer or another unit. {fix}"
        )
    return gap
