"""The rows of both trainers: last assistant turn as the response, lengths reported, weights carried along."""

import json
import logging
from typing import Any

import numpy as np
from accelerate import PartialState

from trl_plus.data.checks import refuse_labels, refuse_margins, refuse_nulls, refuse_weights, with_margins
from trl_plus.data.collators import EXTRA_COLUMNS, RowExtras
from trl_plus.data.forms import FORM, in_form, is_formed, refuse_faults
from trl_plus.data.lengths import LengthReport, apply_overlong, lengths, row_fits
from trl_plus.data.responses import is_conversation, is_plain, sides_of, split_batch, split_response, unpaired_batch
from trl_plus.data.templates import Needs, fitted, needs_of, tokenize_messages
from trl_plus.data.token_ids import no_row, refuse_unknown_tokens, unknown_token, vocabulary_of
from trl_plus.errors import NoRowLeft
from trl_plus.upstream.models import base_model
from trl_plus.upstream.tokens import common_prefix

logger = logging.getLogger("trl_plus")


ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")


class PreferenceRows:
    """Mixed in before a trainer. `length_reports` says what `max_length` did to each dataset, by name."""

    @property
    def length_reports(self) -> dict[str, LengthReport]:
        return self.__dict__.setdefault("_length_reports", {})

    def has_column(self, name: str) -> bool:
        """Whether any training or evaluation set has this column."""
        evaluation = self.eval_dataset
        sets = [self.train_dataset, *(evaluation.values() if isinstance(evaluation, dict) else [evaluation])]
        return any(name in (getattr(dataset, "column_names", None) or ()) for dataset in sets)

    def check_best_metric(self) -> None:
        """Raises a ValueError for a best model by the loss of one of several evaluation sets that is not named."""
        sets, metric = self.eval_dataset, self.args.metric_for_best_model
        if isinstance(sets, dict) and metric in ("loss", "eval_loss") and self.args.eval_strategy != "no":
            names = " or ".join(f"eval_{name}_loss" for name in sets)
            raise ValueError(
                f"`metric_for_best_model` is {metric}, which every evaluation set has. Fix: set it to {names}."
            )

    @property
    def data_collator(self) -> Any:
        """The collator that was given, with `RowExtras` round it; also one that is set later."""
        return self._data_collator

    @data_collator.setter
    def data_collator(self, collator: Any) -> None:
        wrapped = type(collator) is RowExtras  # `isinstance` sees the class of what it wraps
        self._data_collator = collator if wrapped else self._with_extras(collator)

    unpairs = False  # whether TRL makes two rows of each pair

    def count_rows(self, dataset: Any) -> int | None:
        rows = super().count_rows(dataset)
        paired = rows is not None and self.unpairs and "chosen" in dataset.column_names
        return 2 * rows if paired else rows

    def check_rows(self, dataset: Any, name: str) -> None:
        """Raises a ValueError for rows that no step could use; it names the first of them."""
        columns = getattr(dataset, "column_names", None) or list(next(iter(dataset)))
        needed = ("completion", "label") if self.unpairs and "chosen" not in columns else ("chosen", "rejected")
        missing = [column for column in needed if column not in columns]
        if missing:
            raise ValueError(
                f"The {name} dataset has the columns {', '.join(columns)}; {type(self).__name__} needs "
                f"{' and '.join(needed)}."
            )
        label = f"the {name} dataset"
        refuse_nulls(dataset, ["prompt", *needed], label)
        refuse_faults(dataset, label)
        refuse_weights(dataset, label)
        if self._reads_margin:
            refuse_margins(dataset, label)
        if self.unpairs:
            refuse_labels(dataset, label)

    def prepare_rows(self, dataset: Any, name: str) -> Any:
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"The {name} dataset is empty: check its path, split and filters.")
        with PartialState().main_process_first():
            dataset = in_form(dataset, name)
            dataset = with_margins(dataset) if self._reads_margin else dataset
        first = next(iter(dataset))
        self.check_rows(dataset, name)
        sides = sides_of(list(first))
        if not is_conversation(first.get(sides[0])):
            return dataset
        if isinstance(first.get("prompt"), str):
            raise ValueError(
                f"The {name} dataset has a text `prompt` next to conversations: remove that column where the "
                "conversations hold the prompt (UltraFeedback), or make it a list with one user message."
            )
        with PartialState().main_process_first():
            return self._unpaired(self._fitted(self._split(dataset, sides, name), sides, name), name)

    def _split(self, dataset: Any, sides: tuple[str, ...], name: str) -> Any:
        """Conversations as a prompt and the response of each side."""
        if not hasattr(dataset, "__len__"):
            return dataset.map(split_response, fn_kwargs={"sides": sides})
        known = [name for name in ("prompt", *sides) if name in dataset.column_names]
        if "prompt" in known and all(is_plain(row, sides) for row in dataset.select_columns(known)):
            return dataset
        types = dataset.features.copy()
        types.setdefault("prompt", types[sides[0]])
        return dataset.map(
            split_batch,
            fn_kwargs={"sides": sides},
            batched=True,
            with_indices=True,
            features=types,
            desc=f"Finding the response in {name} dataset",
        )

    def _fitted(self, dataset: Any, sides: tuple[str, ...], name: str) -> Any:
        """Messages as the chat template takes them, if it does not take them in the usual form."""
        needs = needs_of(self.processing_class_for_rows)
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

    def _unpaired(self, dataset: Any, name: str) -> Any:
        """Two completions of each pair, as TRL makes them. TRL's table would fill messages with keys of other rows."""
        if not self.unpairs or not hasattr(dataset, "__len__") or not is_formed(dataset.features.get("chosen")):
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

    def finish_rows(self, dataset: Any, name: str, rows_before: int | None) -> Any:
        max_length, overlong = self.args_for_rows.max_length, getattr(self.args_for_rows, "overlong", "truncate")
        if rows_before is None:
            return self._finish_stream(dataset, max_length, overlong)
        if rows_before and not len(dataset):
            raise NoRowLeft(
                f"All {rows_before} rows of the {name} dataset were dropped: every prompt fills max_length "
                f"{max_length}. Raise max_length."
            )
        sides = sides_of(dataset.column_names)
        with PartialState().main_process_first():
            dataset = self._mark_contexts(dataset, sides, name)
        if getattr(self, "model", None) is not None:  # a set for a later evaluation
            self.refuse_tokens(dataset, name)
        if max_length is None:
            return self._with_lengths(dataset, sides)
        dataset, report = apply_overlong(dataset, sides, max_length, overlong, rows_before)
        self.length_reports[name] = report
        end_is_cut = getattr(self.args_for_rows, "truncation_mode", "keep_start") == "keep_start"
        sentence = report.sentence(name, max_length, end_is_cut)
        if sentence and PartialState().is_main_process:
            logger.warning(sentence)
        return self._with_lengths(dataset, sides)

    def refuse_unknown_tokens(self) -> None:
        """Raises a ValueError if a training or evaluation row holds a token that the model has no row for."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **sets}.items():
            if hasattr(dataset, "__len__") and getattr(dataset, "column_names", None):
                self.refuse_tokens(dataset, name)

    def refuse_tokens(self, dataset: Any, name: str) -> None:
        columns = [column for column in ID_COLUMNS if column in dataset.column_names]
        vocabulary = vocabulary_of(base_model(self.model))
        refuse_unknown_tokens(dataset, columns, vocabulary, f"the {name} dataset", self.tokenizer)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not hasattr(self.train_dataset, "__len__"):  # the rows of a stream are seen here for the first time
            rows = vocabulary_of(base_model(self.model)).embeddings
            for batch in batches:
                ids = batch["input_ids"].flatten().cpu().numpy()
                place = unknown_token(ids, rows)
                if place is not None and rows is not None:
                    raise ValueError(f"A row of the stream holds {no_row(int(ids[place]), rows, self.tokenizer)}")
        return batches, count

    def _with_lengths(self, dataset: Any, sides: tuple[str, ...]) -> Any:
        """A column of lengths for `group_by_length`, which transformers cannot infer from rows without `input_ids`."""
        if self.args_for_rows.train_sampling_strategy != "group_by_length":
            return dataset
        size = lengths(dataset, ["prompt_ids", *(f"{side}_ids" for side in sides)])
        longest = size["prompt_ids"] + np.max([size[f"{side}_ids"] for side in sides], axis=0)
        column = self.args_for_rows.length_column_name
        kept = dataset.remove_columns([name for name in dataset.column_names if name == column])
        return kept.add_column(column, longest)

    @property
    def extra_columns(self) -> tuple[str, ...]:
        margin = ("margin",) if self._reads_margin else ()
        return (*EXTRA_COLUMNS, *margin, self.args_for_rows.length_column_name)

    @property
    def _reads_margin(self) -> bool:
        return bool(getattr(self.args_for_rows, "margin_scale", 0.0))

    def _with_extras(self, collator: Any) -> RowExtras:
        return RowExtras(collator, self.args_for_rows.length_column_name, self._reads_margin)

    def _mark_contexts(self, dataset: Any, sides: tuple[str, ...], name: str) -> Any:
        """Adds `<side>_context` where sides have histories of their own in front of the response."""
        texts = [dataset[0].get(side) for side in sides]
        if not all(map(is_conversation, texts)) or all(
            len(row[side]) == 1 for row in dataset.select_columns(list(sides)) for side in sides
        ):
            return dataset
        if getattr(self.args_for_rows, "truncation_mode", "keep_start") != "keep_start":
            raise ValueError(
                f"Sides of the {name} dataset have different histories, which truncation_mode keep_end cannot mask: "
                "use keep_start."
            )
        return dataset.map(
            context_tokens,
            fn_kwargs={"sides": sides, "processing_class": self.processing_class_for_rows},
            desc=f"Masking earlier turns in {name} dataset",
        )

    def _finish_stream(self, dataset: Any, max_length: int | None, overlong: str) -> Any:
        """The same for rows that come one at a time; nothing can be counted before it has passed."""
        first = next(iter(dataset))
        sides = sides_of(list(first))
        if is_conversation(first.get(sides[0])):
            kwargs = {"sides": sides, "processing_class": self.processing_class_for_rows}
            dataset = dataset.map(context_tokens, fn_kwargs=kwargs)
        if max_length is None or overlong == "truncate":
            return dataset
        return dataset.filter(row_fits, fn_kwargs={"sides": sides, "max_length": max_length, "overlong": overlong})


def fitted_row(row: dict[str, Any], columns: tuple[str, ...], needs: Needs) -> dict[str, Any]:
    """The messages of a row as the chat template takes them."""
    return {column: fitted(row[column], needs) for column in columns}


def context_tokens(row: dict[str, Any], sides: tuple[str, ...], processing_class: Any) -> dict[str, int]:
    """How many leading tokens of each `<side>_ids` are earlier turns rather than the last assistant message."""
    tools = row.get("tools")
    kwargs = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }
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
