"""The file that keeps a reference's log-probabilities between runs: what its name stands for, and how it is written.

A file is written under a temporary name and renamed, so a run that dies meanwhile leaves nothing that is ever read. A
digest of the values is kept inside: a damaged file is computed anew instead of believed.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets.fingerprint import Hasher
from torch import Tensor

from trl_plus.data.digests import rows_digest
from trl_plus.trainers.adapters import REF, adapter_weights
from trl_plus.trainers.given_reference import given_rows
from trl_plus.trainers.reference import OwnReference
from trl_plus.upstream.models import base_model, is_peft

logger = logging.getLogger("trl_plus")
CHUNK_BYTES = 2**26
# A pass without gradient keeps no activations. How many training micro-batches it scores at once is ours, not measured
WITHOUT_GRADIENT = 4


def _bytes_of(tensor: Tensor) -> Iterator[Any]:
    """The bytes of one tensor, a chunk at a time, so that no more than a chunk leaves its device."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), CHUNK_BYTES):
        yield flat[start : start + CHUNK_BYTES].cpu().numpy().data


def digest_of(tensors: dict[str, Tensor]) -> str:
    """A digest of names, types, shapes and contents, whatever their order; shards count as what this process holds."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = getattr(tensor, "ds_tensor", tensor)  # DeepSpeed ZeRO-3
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # FSDP2
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        for chunk in _bytes_of(tensor):
            found.update(chunk)
    return found.hexdigest()


def longest_row(dataset: Any, max_length: int | None) -> int:
    """Tokens of the longest row of a tokenized dataset, a prompt counted once and `max_length` for each completion."""
    columns = [c for c in ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids") if c in dataset.column_names]
    longest = 1
    for batch in dataset.select_columns(columns).with_format(None).iter(1000):
        longest = max(longest, *(sum(map(len, row)) for row in zip(*batch.values(), strict=True)))
    return min(longest, max_length * (len(columns) - 1)) if max_length else longest


def write(path: Path, columns: dict[str, Tensor]) -> None:
    """Writes all of the file or none of it. Raises an OSError where the folder cannot be written to."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: values.contiguous() for name, values in columns.items()}, {"digest": digest_of(columns)})
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}-", suffix=".part", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def read(path: Path, rows: int) -> dict[str, Tensor] | None:
    """The columns of a file, (rows,) each, or None where there is none or it is damaged, which is said."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names, digest = list(file.keys()), (file.metadata() or {}).get("digest")
            columns = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): its log-probabilities are computed again.", path, error)
        return None
    if digest_of(columns) != digest or any(len(values) != rows for values in columns.values()):
        logger.warning("%s is damaged: its log-probabilities are computed again.", path)
        return None
    return columns


def reference_tensors(model: Any, own: OwnReference | None) -> dict[str, Tensor]:
    """The tensors that a reference computes with: its parameters and buffers.

    Of a policy that is its own reference the adapter that training changes is left out, unless its first values are the
    reference. A frozen adapter counts, also one that the reference does not use: that costs a file and is never wrong.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if getattr(base_model(model), "is_quantized", False):  # scales of 4-bit weights are neither
        extra = model.state_dict()
        tensors |= {n: t for n, t in extra.items() if n not in tensors and isinstance(t, Tensor)}
    if own is None:
        return tensors
    adapter = adapter_weights(model)
    return {n: t for n, t in tensors.items() if n in own.first or not (t.requires_grad and id(t) in adapter)}


def reference_adapter(model: Any, own: OwnReference | None) -> str | None:
    """The settings of the adapters that the reference keeps: their scale is no weight. None without an adapter."""
    if not is_peft(model):
        return None
    if own is None or not (own.switched_off or own.copied):
        used = {name: model.peft_config[name].to_dict() for name in model.active_adapters}
    else:
        used = {REF: model.peft_config[REF].to_dict()} if own.copied else {}
    kept = [{n: v for n, v in used[name].items() if n != "base_model_name_or_path"} for name in sorted(used)]
    return json.dumps(
        kept, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )


def folder() -> Path:
    """The folder of the files, whatever the run's output folder; all processes of a run must see it."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "trl_plus" / "reference"


class ReferenceCache:
    """With `precompute_ref_log_probs`, no log-probability is computed twice, nor taken from a wrong file.

    TRL's own file is named by the dataset's fingerprint, which not every option that changes a log-probability enters,
    and rows in memory have one that only the process which wrote it finds. So TRL computes into a new folder that all
    processes share, and what is kept has a name made of contents.

    Args:
        trainer: its models, `own_reference`, collator, tokenizer, `args` and `accelerator` are read.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def rows(self, dataset: Any, name: str, compute: Callable[[Any], Any]) -> Any:
        """Rows with columns of reference log-probabilities: given, read, or computed by TRL's `compute(dataset)`."""
        given = given_rows(self._trainer, dataset, name, lambda rows: self._compute_columns(rows, compute))
        if given is not None:
            return given
        if not isinstance(dataset, datasets.Dataset):
            return compute(dataset)  # TRL refuses streams
        main, where = self._trainer.accelerator.is_main_process, folder()
        try:
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Reference log-probabilities cannot be kept in {where} ({error}): set HF_DATASETS_CACHE to a folder "
                "that can be written to, or precompute_ref_log_probs: false."
            ) from None
        path = where / f"{self.key(dataset)}.safetensors"
        columns = from_main(read(path, len(dataset)) if main else None)
        if main and columns is not None:
            logger.warning(
                "Reference log-probabilities of the %s dataset: read from %s.", name, path, extra={"note": True}
            )
        if columns is None:
            columns = self._compute_columns(dataset, compute)
            if main:
                keep(path, columns, name)
        values = datasets.Dataset.from_dict({column: values.numpy() for column, values in columns.items()})
        return datasets.concatenate_datasets([dataset, values], axis=1)

    def batch_size(self, dataset: Any, batch_size: int) -> int:
        """Rows scored at once: `precompute_ref_batch_size`, or more than a training micro-batch has."""
        args, budget = self._trainer.args, self._trainer.budget
        if args.precompute_ref_batch_size or not isinstance(dataset, datasets.Dataset):
            return batch_size
        if budget is None:
            return WITHOUT_GRADIENT * batch_size
        return max(1, WITHOUT_GRADIENT * budget.tokens // longest_row(dataset, args.max_length))

    def key(self, dataset: Any) -> str:
        """Digest of the weights, rows, collation, precision and versions of log-probabilities. Same on all ranks."""
        trainer, args, own = self._trainer, self._trainer.args, self._trainer.own_reference
        model = trainer.accelerator.unwrap_model(trainer.model if trainer.ref_model is None else trainer.ref_model)
        with own.active() if own is not None else nullcontext():
            shards = gather_object([digest_of(reference_tensors(model, own))])
        config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}  # not its path
        collator = getattr(trainer.data_collator, "collator", trainer.data_collator)
        known = type(collator).__module__.startswith("trl.")  # another may read any column
        columns = [c for c in dataset.column_names if not known or c.endswith(("_ids", "_mask", "_context"))]
        options = ("max_length", "truncation_mode", "padding_free", "ld_alpha", "bf16", "fp16")
        parts = [
            list(dict.fromkeys(shards)),  # copies count once
            sorted(config.items(), key=str),
            reference_adapter(model, own),
            getattr(trainer, "calculate_KL", False),
            rows_digest(dataset, columns) if trainer.accelerator.is_main_process else None,
            Hasher.hash(trainer.data_collator),
            trainer.tokenizer.pad_token_id,
            [(option, getattr(args, option, None)) for option in options],
            str(trainer.accelerator.mixed_precision),
            [version(package) for package in ("trl", "transformers", "torch")],
        ]
        return from_main(hashlib.sha256(repr(parts).encode()).hexdigest())

    def _compute_columns(self, dataset: Any, compute: Any) -> dict[str, Tensor]:
        """TRL's columns, (rows,) each, by way of a file that no other run knows."""
        main = self._trainer.accelerator.is_main_process
        part = from_main(tempfile.mkdtemp(dir=folder(), prefix="computing-") if main else None)
        rows = copy.copy(dataset)
        # a file for each fingerprint: filtered rows are written out before columns are put beside them
        rows._get_cache_file_path = lambda fingerprint: str(Path(part) / f"{fingerprint}.arrow")
        try:
            found = compute(rows).with_format("torch")
            columns = {c: found[c][:].clone() for c in found.column_names if c not in dataset.column_names}
            self._trainer.accelerator.wait_for_everyone()
        finally:
            if main:
                shutil.rmtree(part, ignore_errors=True)
        return columns


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    return broadcast_object_list([value], from_process=0)[0]


def keep(path: Path, columns: dict[str, Tensor], name: str) -> None:
    """Writes the file, or says why the next run will compute again."""
    try:
        write(path, columns)
        logger.warning(
            "Reference log-probabilities of the %s dataset: computed, and kept in %s.", name, path, extra={"note": True}
        )
    except OSError as error:
        logger.warning("Reference log-probabilities of the %s dataset: computed, and not kept (%s).", name, error)
