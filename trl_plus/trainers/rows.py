"""The rows of both trainers: last assistant turn as the response, lengths reported, weights carried along."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import trl
from accelerate import PartialState

from trl_plus.data.checks import refuse_labels, refuse_margins, refuse_nulls, refuse_weights, with_margins
from trl_plus.data.collators import EXTRA_COLUMNS, RowExtras
from trl_plus.data.formats import conversational_prompt
from trl_plus.data.forms import FORM, in_form, is_formed, refuse_faults
from trl_plus.data.lengths import LengthReport, apply_overlong, first_labels, lengths, row_fits
from trl_plus.data.refusals import is_unchecked, refuse_rows
from trl_plus.data.responses import is_conversation, is_plain, sides_of, split_batch, split_response, unpaired_batch
from trl_plus.data.spans import LOSS_MASK, Selection, SpanFault, loss_masks
from trl_plus.data.templates import (
    Needs,
    fitted,
    needs_of,
    template_arguments,
    tokenize_messages,
    unread_arguments,
    with_arguments,
)
from trl_plus.data.token_ids import no_row, refuse_unknown_tokens, unknown_token, vocabulary_of
from trl_plus.errors import NoRowLeft
from trl_plus.trainers.seams import upstream_tokenize
from trl_plus.upstream.compat import TRLKTOConfig
from trl_plus.upstream.models import base_model
from trl_plus.upstream.tokens import common_prefix

logger = logging.getLogger("trl_plus")


_shared: ContextVar[dict[str, tuple[Any, Any, LengthReport | None]] | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(made: dict[str, Any]) -> Iterator[None]:
    """Within this context rows that were made of the same dataset object are taken from `made`, and others kept there.

    Args:
        made: of configurations that make the same rows. It is filled here.
    """
    before = _shared.set(made)
    try:
        yield
    finally:
        _shared.reset(before)


ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")


class PreferenceRows:
    """Makes rows of a dataset: in one form before TRL tokenizes them, marked and within `max_length` afterwards.

    Args:
        args: the training configuration.
        unpairs: the trainer makes two rows of each pair (KTO).
        owner: the name of the trainer, for messages.

    Attributes:
        reports: what `max_length` did to each dataset, by name.
    """

    def __init__(self, args: Any, unpairs: bool, owner: str) -> None:
        self._args, self._unpairs, self._owner = args, unpairs, owner
        self._selection = Selection.of(args)
        self.reports: dict[str, LengthReport] = {}

    def collator(self, collator: Any) -> Any:
        """A collator with `RowExtras` round it, unless it has that."""
        wrapped = type(collator) is RowExtras  # `isinstance` sees the class of what it wraps
        return collator if wrapped else RowExtras(collator, self._args.length_column_name, self._reads_margin)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns that the collator reads and TRL's would not."""
        margin = ("margin",) if self._reads_margin else ()
        return (*EXTRA_COLUMNS, *margin, self._args.length_column_name)

    @property
    def _reads_margin(self) -> bool:
        return bool(getattr(self._args, "margin_scale", 0.0))

    def make(self, dataset: Any, name: str, tokenize: Callable[[Any], Any], processing_class: Any) -> Any:
        """The rows of a dataset as a trainer takes them; `tokenize` is TRL's."""
        shared = _shared.get()
        source, rows, report = (shared or {}).get(name, (None, None, None))
        if rows is not None and source is dataset:
            if report is not None:
                self._report(name, report)
            return rows
        prepared = self.prepare(dataset, name, processing_class)
        before = self.count(prepared)
        rows = self.finish(tokenize(prepared), name, before, processing_class)
        if shared is not None:
            shared[name] = (dataset, rows, self.reports.get(name))
        return rows

    def _report(self, name: str, report: LengthReport) -> None:
        """Keep the report of a dataset, and log its sentence."""
        self.reports[name] = report
        sentence = report.sentence(name, self._args.max_length, self._cuts_the_end)
        if sentence and PartialState().is_main_process:
            logger.warning(sentence)

    def count(self, dataset: Any) -> int | None:
        """Rows that TRL will tokenize; None for a stream."""
        if not hasattr(dataset, "__len__"):
            return None
        return len(dataset) * (2 if self._unpairs and "chosen" in dataset.column_names else 1)

    def prepare(self, dataset: Any, name: str, processing_class: Any) -> Any:
        """Rows before TRL tokenizes them. Raises a ValueError for rows that no step could use."""
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"The {name} dataset is empty: check its path, split and filters.")
        with PartialState().main_process_first():
            dataset = in_form(of_python(dataset), name)
            dataset = with_template_arguments(dataset, getattr(self._args, "chat_template_kwargs", None), name)
            dataset = with_margins(dataset) if self._reads_margin else dataset
        if name == "train":
            note_unread(processing_class, getattr(self._args, "chat_template_kwargs", None))
        first = next(iter(dataset))
        self._check(dataset, name)
        sides = sides_of(list(first))
        if not is_conversation(first.get(sides[0])):
            return dataset
        with PartialState().main_process_first():
            if isinstance(first.get("prompt"), str):
                dataset = conversational_prompt(dataset)
            dataset = fit_to_template(
                split_sides(dataset, sides, name, self._selection.keeps_turns), sides, name, needs_of(processing_class)
            )
            return unpaired(dataset, name) if self._unpairs else dataset

    def _check(self, dataset: Any, name: str) -> None:
        """Raises a ValueError for rows that no step could use; it names the first of them."""
        columns = getattr(dataset, "column_names", None) or list(next(iter(dataset)))
        needed = ("completion", "label") if self._unpairs and "chosen" not in columns else ("chosen", "rejected")
        missing = [column for column in needed if column not in columns]
        if missing:
            raise ValueError(
                f"The {name} dataset has the columns {', '.join(columns)}; {self._owner} needs {' and '.join(needed)}."
            )
        label = f"the {name} dataset"
        refuse_nulls(dataset, ["prompt", *needed], label)
        refuse_faults(dataset, label)
        refuse_weights(dataset, label)
        refuse_rows(dataset, name)
        if self._reads_margin:
            refuse_margins(dataset, label)
        if self._unpairs:
            refuse_labels(dataset, label)

    def finish(self, dataset: Any, name: str, rows_before: int | None, processing_class: Any) -> Any:
        """Rows after TRL tokenized them: earlier turns are marked, `overlong` applied, and the report made.

        Args:
            rows_before: rows that TRL tokenized; None for a stream.

        Raises:
            NoRowLeft: no row is left.
        """
        max_length, overlong = self._args.max_length, getattr(self._args, "overlong", "truncate")
        if rows_before is None:
            return finish_stream(dataset, max_length, overlong, processing_class, self._selection)
        if rows_before and not len(dataset):
            raise NoRowLeft(
                f"All {rows_before} rows of the {name} dataset were dropped: every prompt fills max_length "
                f"{max_length}. Raise max_length."
            )
        sides, end_is_cut = sides_of(dataset.column_names), self._cuts_the_end
        with PartialState().main_process_first():
            if self._selection.whole_response:
                dataset = mark_contexts(dataset, sides, name, processing_class, end_is_cut)
            else:
                dataset = mark_losses(dataset, sides, name, processing_class, self._selection)
        if max_length is not None:
            dataset, report = apply_overlong(dataset, sides, max_length, overlong, rows_before, end_is_cut)
            self._report(name, report)
        return self._with_lengths(dataset, sides)

    @property
    def _cuts_the_end(self) -> bool:
        return getattr(self._args, "truncation_mode", "keep_start") == "keep_start"

    def _with_lengths(self, dataset: Any, sides: tuple[str, ...]) -> Any:
        """A column of lengths for `group_by_length`, which transformers cannot infer from rows without `input_ids`."""
        if self._args.train_sampling_strategy != "group_by_length":
            return dataset
        size = lengths(dataset, ["prompt_ids", *(f"{side}_ids" for side in sides)])
        longest = size["prompt_ids"] + np.max([size[f"{side}_ids"] for side in sides], axis=0)
        column = self._args.length_column_name
        kept = dataset.remove_columns([name for name in dataset.column_names if name == column])
        return kept.add_column(column, longest)


def tokenize(
    args: Any, processing_class: Any, dataset: Any, name: str = "preflight", *, paired: bool | None = None
) -> Any:
    """The rows that the trainer of a configuration would make of a dataset, without that trainer or a model.

    Args:
        args: a configuration of ours or of TRL's.
        processing_class: tokenizer or processor.
        name: the dataset's name in messages.
        paired: the rows are pairs (as for DPOTrainer) or single completions (KTOTrainer); None for what `args` says.

    Raises:
        ValueError: rows that no step could use.
        NoRowLeft: no row is left.
    """
    paired = not isinstance(args, TRLKTOConfig) if paired is None else paired
    kind = trl.DPOTrainer if paired else trl.KTOTrainer
    family = getattr(args, "family", None)
    own = family is not None and family.paired == paired
    rows = PreferenceRows(args, not paired, family.trainer if own else kind.__name__)
    return rows.make(
        dataset, name, lambda found: upstream_tokenize(kind, args, processing_class, found, name), processing_class
    )


def of_python(dataset: Any) -> Any:
    """The dataset with lists instead of the tensors of `with_format`, which a collator would add up."""
    if not hasattr(dataset, "__len__"):
        return dataset.with_format(None)
    if dataset.format["type"] in (None, "custom"):
        return dataset
    return dataset.select_columns(dataset.format["columns"]).with_format(None)


def with_template_arguments(dataset: Any, values: dict[str, Any] | None, name: str) -> Any:
    """Conversations with the `chat_template_kwargs` of the run in their column; a row's own win."""
    if not values or not is_conversation(next(iter(dataset)).get(sides_of(list(next(iter(dataset))))[0])):
        return dataset
    if not hasattr(dataset, "__len__"):
        return dataset.map(with_arguments, fn_kwargs={"values": values})
    from datasets import Json

    types = dataset.features.copy()
    types["chat_template_kwargs"] = Json(id=FORM)
    return dataset.map(
        row_arguments,
        fn_kwargs={"values": values},
        features=types,
        desc=f"Adding chat_template_kwargs to {name} dataset",
    )


def note_unread(processing_class: Any, values: dict[str, Any] | None) -> None:
    """Notes the `chat_template_kwargs` of a run that its chat template does not read."""
    names = unread_arguments(processing_class, values)
    if names and PartialState().is_main_process:
        logger.warning(
            "`chat_template_kwargs`: the chat template does not read %s, which changes nothing.",
            " and ".join(f"`{name}`" for name in names),
            extra={"note": True},
        )


def row_arguments(row: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The column `chat_template_kwargs` of a row."""
    return {"chat_template_kwargs": with_arguments(row, values)["chat_template_kwargs"]}


def split_sides(dataset: Any, sides: tuple[str, ...], name: str, keep_turns: bool = False) -> Any:
    """Conversations as a prompt and the response of each side, or its turns with `keep_turns`."""
    if not hasattr(dataset, "__len__"):
        return dataset.map(split_response, fn_kwargs={"sides": sides, "keep_turns": keep_turns})
    known = [name for name in ("prompt", *sides) if name in dataset.column_names]
    if "prompt" in known and all(is_plain(row, sides) for row in dataset.select_columns(known)):
        return dataset
    types = dataset.features.copy()
    types.setdefault("prompt", types[sides[0]])
    return dataset.map(
        split_batch,
        fn_kwargs={"sides": sides, "keep_turns": keep_turns},
        batched=True,
        with_indices=True,
        features=types,
        desc=f"Finding the response in {name} dataset",
    )


def fit_to_template(dataset: Any, sides: tuple[str, ...], name: str, needs: Needs) -> Any:
    """Messages as the chat template takes them, if it does not take them in the usual form."""
    if not needs:
        return dataset
    columns = ("prompt", *sides)
    if not hasattr(dataset, "__len__"):
        return dataset.map(fitted_row, fn_kwargs={"columns": columns, "needs": needs})
    from datasets import Json, List

    types = dataset.features.copy()
    types.update({column: List(Json(id=FORM)) for column in columns})
    return dataset.map(
        fitted_row,
        fn_kwargs={"columns": columns, "needs": needs},
        features=types,
        desc=f"Fitting {name} dataset to the chat template",
    )


def unpaired(dataset: Any, name: str) -> Any:
    """Two completions of each pair, as TRL makes them. TRL's table would fill messages with keys of other rows."""
    if not hasattr(dataset, "__len__") or not is_formed(dataset.features.get("chosen")):
        return dataset
    from datasets import Value

    types = dataset.features.copy()
    types["completion"], types["label"] = types.pop("chosen"), Value("bool")
    types.pop("rejected")
    return dataset.map(
        unpaired_batch,
        batched=True,
        remove_columns=["chosen", "rejected"],
        features=types,
        desc=f"Unpairing {name} dataset",
    )


def mark_contexts(dataset: Any, sides: tuple[str, ...], name: str, processing_class: Any, end_is_cut: bool) -> Any:
    """Adds `<side>_context` where sides have histories of their own in front of the response."""
    texts = [dataset[0].get(side) for side in sides]
    if not all(map(is_conversation, texts)) or all(
        len(row[side]) == 1 for row in dataset.select_columns(list(sides)) for side in sides
    ):
        return dataset
    if not end_is_cut:
        raise ValueError(
            f"Sides of the {name} dataset have different histories, which truncation_mode keep_end cannot mask: "
            "use keep_start."
        )
    return dataset.map(
        context_tokens,
        fn_kwargs={"sides": sides, "processing_class": processing_class},
        desc=f"Masking earlier turns in {name} dataset",
    )


def mark_losses(dataset: Any, sides: tuple[str, ...], name: str, processing_class: Any, selection: Selection) -> Any:
    """Adds `<side>_loss_mask`, by `train_on` and `mask`.

    Raises:
        ValueError: the spans of a row cannot be located, or a row has nothing left to train on. It names the row.
    """
    from datasets import List, Value

    if "prompt_ids" not in dataset.column_names:
        raise ValueError("`train_on` and `mask` cannot be used with images: remove them.")
    types = dataset.features.copy()
    types.update({f"{side}{LOSS_MASK}": List(Value("bool")) for side in sides})
    marked = dataset.map(
        row_losses,
        fn_kwargs={"sides": sides, "processing_class": processing_class, "selection": selection},
        with_indices=True,
        features=types,
        desc=f"Masking {name} dataset",
    )
    if not is_unchecked():
        refuse_unlabelled(marked, sides, name)
    return marked


def row_losses(
    row: dict[str, Any], index: int, sides: tuple[str, ...], processing_class: Any, selection: Selection
) -> dict[str, list[bool]]:
    """`loss_masks` of a row, with its number in what is raised."""
    try:
        return loss_masks(row, sides, processing_class, selection)
    except SpanFault as fault:
        raise SpanFault(f"Row {index}: {fault}") from None


def refuse_unlabelled(dataset: Any, sides: tuple[str, ...], name: str) -> None:
    """Raises a ValueError for a row of which one side has no token in the loss."""
    for side in sides:
        empty = np.flatnonzero(first_labels(dataset, side) < 0)
        if len(empty):
            raise ValueError(
                f"Row {empty[0]} of the {name} dataset has nothing left to train on in `{side}` ({len(empty)} such "
                "rows): `train_on` and `mask` take out every token. Fix: remove these rows, or give them an answer "
                "behind the thinking block or the calls."
            )


def finish_stream(
    dataset: Any, max_length: int | None, overlong: str, processing_class: Any, selection: Selection
) -> Any:
    """As `PreferenceRows.finish`, for rows that come one at a time; nothing can be counted before it has passed."""
    first = next(iter(dataset))
    sides = sides_of(list(first))
    kwargs = {"sides": sides, "processing_class": processing_class}
    if not selection.whole_response:
        dataset = dataset.map(row_losses, fn_kwargs={**kwargs, "selection": selection}, with_indices=True)
    elif is_conversation(first.get(sides[0])):
        dataset = dataset.map(context_tokens, fn_kwargs=kwargs)
    if max_length is None or overlong == "truncate":
        return dataset
    return dataset.filter(row_fits, fn_kwargs={"sides": sides, "max_length": max_length, "overlong": overlong})


def check_known_tokens(model: Any, dataset: Any, name: str, tokenizer: Any) -> None:
    """Raises a ValueError if a row of a tokenized dataset holds a token that the model has no row for."""
    columns = [column for column in ID_COLUMNS if column in dataset.column_names]
    refuse_unknown_tokens(dataset, columns, vocabulary_of(base_model(model)), f"the {name} dataset", tokenizer)


def check_known_in_stream(model: Any, batches: list[dict[str, Any]], tokenizer: Any) -> None:
    """The same for micro-batches of a stream, whose rows are seen there for the first time."""
    rows = vocabulary_of(base_model(model)).embeddings
    for batch in batches:
        ids = batch["input_ids"].flatten().cpu().numpy()
        place = unknown_token(ids, rows)
        if place is not None and rows is not None:
            raise ValueError(f"A row of the stream holds {no_row(int(ids[place]), rows, tokenizer)}")


def sets_of(train: Any, held_out: Any) -> dict[str, Any]:
    """Training and evaluation sets by name; None where there is none."""
    return {"train": train, **(held_out if isinstance(held_out, dict) else {"eval": held_out})}


def has_column(sets: dict[str, Any], name: str) -> bool:
    """True if any of the sets has this column."""
    return any(name in (getattr(dataset, "column_names", None) or ()) for dataset in sets.values())


def check_best_metric(args: Any, held_out: Any) -> None:
    """Raises a ValueError for a best model by the loss of one of several evaluation sets that is not named."""
    metric = args.metric_for_best_model
    if isinstance(held_out, dict) and metric in ("loss", "eval_loss") and args.eval_strategy != "no":
        names = " or ".join(f"eval_{name}_loss" for name in held_out)
        raise ValueError(
            f"`metric_for_best_model` is {metric}, which every evaluation set has. Fix: set it to {names}."
        )


def fitted_row(row: dict[str, Any], columns: tuple[str, ...], needs: Needs) -> dict[str, Any]:
    """The messages of a row as the chat template takes them."""
    return {column: fitted(row[column], needs) for column in columns}


def context_tokens(row: dict[str, Any], sides: tuple[str, ...], processing_class: Any) -> dict[str, int]:
    """How many leading tokens of each `<side>_ids` are earlier turns rather than the last assistant message."""
    kwargs = template_arguments(row)
    found = {}
    for side in sides:
        if len(row[side]) == 1:
            found[f"{side}_context"] = 0
            continue
        context = [*row["prompt"], *row[side][:-1]]
        before = tokenize_messages(processing_class, context, add_generation_prompt=True, **kwargs)
        ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
        found[f"{side}_context"] = max(0, common_prefix(before, ids) - len(row["prompt_ids"]))
    return found
