"""Everything private or version-dependent of TRL and transformers that trl_plus touches. The only such file.

`Seams` turns the private methods that TRL's two trainers share into hooks with public names; our trainers override
the hooks and never a private method.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from trl_plus.forward.score import model_inputs
from trl_plus.upstream.compat import check_fit

check_fit()  # the first that imports TRL's trainers


def upstream_tokenize(trl_trainer: type, args: Any, processing_class: Any, dataset: Any, name: str) -> Any:
    """The rows that a TRL trainer's own `_prepare_dataset` makes of a dataset, without that trainer."""
    read = SimpleNamespace(  # what it reads of `self`
        _tokenizer=getattr(processing_class, "tokenizer", processing_class),
        calculate_KL=False,  # KTO's fixed mismatched rows, which ours do without
        desirable_weight=getattr(args, "desirable_weight", 1.0),
        undesirable_weight=getattr(args, "undesirable_weight", 1.0),
    )
    return trl_trainer._prepare_dataset(read, dataset, processing_class, args, name)


class Seams:
    """Mixed in before a TRL trainer: its private seams under public names. Each hook's default is TRL's behaviour."""

    extra_columns: tuple[str, ...] = ()
    eval_prefix: str = "eval"

    method_name: str | None = None  # in the model's tags; TRL's own where None

    # -- hooks ------------------------------------------------------------------------------------------------------

    def micro_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The scalar to call backward on, for one micro-batch."""
        return self.upstream_loss(model, inputs)

    def measured_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """`micro_batch_loss`, with what it needs to know of the step."""
        return self.micro_batch_loss(model, inputs)

    def save_whole(self, folder: str, step: int) -> None:
        """Saves `checkpoint-<step>` in `folder`, by `write_checkpoint`."""
        self.write_checkpoint(folder)

    def save_files(self, folder: str, write: Callable[[str], None]) -> None:
        """Saves the model in `folder` by transformers' `write(folder)`, outside of a checkpoint."""
        write(folder)

    def prepare_rows(self, dataset: Any, name: str, tokenize: Callable[[Any], Any], processing_class: Any) -> Any:
        """Rows of a dataset, which TRL's `tokenize(dataset)` tokenizes."""
        return tokenize(dataset)

    def reference_rows(self, dataset: Any, name: str, compute: Any) -> Any:
        """Rows with columns of reference log-probabilities, which TRL's `compute(dataset)` adds."""
        return compute(dataset)

    def reference_batch_size(self, dataset: Any, batch_size: int) -> int:
        """Rows of a batch of `reference_rows`; `batch_size` is TRL's."""
        return batch_size

    def before_step(self, model: Any) -> None:
        """The gradients of an optimizer step are complete, and neither clipped nor applied."""

    def norm_is_known(self, norm: Any) -> None:
        """The gradient norm of an optimizer step, which DeepSpeed has applied by then."""

    def metric_means(self, mode: str) -> dict[str, float]:
        """Our metrics since the last call, by TRL's names; `mode` is "train" or "eval"."""
        return {}

    # -- TRL's and transformers' private names ------------------------------------------------------------------------

    def upstream_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's own loss of a micro-batch: a mean over its rows."""
        return super()._compute_loss(model, inputs, False)

    def take_upstream_metrics(self, mode: str) -> dict[str, float]:
        """Return what the last `upstream_loss` recorded: name -> mean over its micro-batch. Clears TRL's record."""
        taken = {name: values[-1] for name, values in self._metrics[mode].items() if name != "num_tokens"}
        self._metrics[mode].clear()
        return taken

    @contextmanager
    def ungathered(self) -> Iterator[None]:
        """TRL's metrics are this process's own: it gathers within its loss, from micro-batches of equal shapes only."""
        accelerator, tokens = self.accelerator, self._total_train_tokens
        accelerator.gather = accelerator.gather_for_metrics = lambda values, **_: values
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics  # the class's own show again
            self._total_train_tokens = tokens  # TRL counted this process's only

    def running_loss(self) -> torch.Tensor:
        """The sum of losses since the last log, which transformers adds to in place; zero before `train` is called."""
        return self.__dict__.setdefault("_tr_loss", torch.zeros((), device=self.args.device))

    def _clip_grad_norm(self, model):
        self.before_step(model)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        if self.args.max_grad_norm <= 0:  # nothing was clipped
            self.before_step(model)
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.norm_is_known(grad_norm)
        return grad_norm

    def use_weights(self, *, averaged: bool) -> None:
        """Schedule-free optimizers train one set of weights and evaluate the average of another; others have one."""
        optimizer = getattr(self, "optimizer", None)  # none before training
        switch = getattr(optimizer, "eval" if averaged else "train", None)
        if callable(switch):
            switch()

    def count_tokens(self, tokens: int) -> int:
        """Adds to TRL's count of training tokens (all ranks), and returns it."""
        self._total_train_tokens += tokens // self._tp_size  # tensor-parallel ranks see the same tokens
        return self._total_train_tokens

    _part_folder: str | None = None  # where a checkpoint is being written
    random_state_is_loaded = False  # set by a resumed run that has done so before transformers does

    def write_checkpoint(self, folder: str) -> None:
        """Their save of `checkpoint-N`, inside `folder`."""
        self._part_folder = folder
        try:
            super()._save_checkpoint(self.model, None)
        finally:
            self._part_folder = None

    def write_model(self, folder: str) -> None:
        """Their `save_model` into `folder`, with no upload. Every process calls it."""
        self._part_folder = folder
        try:
            super().save_model(folder, True)
        finally:
            self._part_folder = None

    def push_checkpoint(self, checkpoint: str) -> None:
        super()._push_from_checkpoint(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """PEFT loads an adapter in float32. TRL trains QLoRA's in bfloat16, and a resumed run must go on in that."""
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])
        self.weights_are_loaded(resume_from_checkpoint)

    def weights_are_loaded(self, folder: str) -> None:
        """The model has the weights of a checkpoint."""

    def checkpoint_is_written(self, folder: str) -> None:
        """The model of a checkpoint, and what PEFT puts beside it, is in `folder`, on the process that writes."""

    def best_model_is_loaded(self) -> None:
        """After training, under `load_best_model_at_end`."""

    def _finalize_training(self, *args, **kwargs):
        """transformers adds to `train_loss` what this process alone lost since the last log; here the mean of all."""
        self._tr_loss.copy_(self.accelerator.reduce(self._tr_loss, reduction="mean"))
        return super()._finalize_training(*args, **kwargs)

    def _load_best_model(self):
        self.use_weights(averaged=True)  # those of the checkpoint are; a later switch would average them again
        super()._load_best_model()
        self.weights_are_loaded(self.state.best_model_checkpoint)
        self.best_model_is_loaded()

    def load_random_state(self, checkpoint: str) -> None:
        self._load_rng_state(checkpoint)
        self.random_state_is_loaded = True

    def logging_state(self) -> dict[str, Any]:
        """The loss since the last log, over all ranks, and what else transformers and TRL count and do not save."""
        loss = self.accelerator.reduce(self._tr_loss.detach().clone(), reduction="mean").item()
        return {"loss": loss, "last_logged": self._globalstep_last_logged, "tokens": self._total_train_tokens}

    def restore_logging_state(self, saved: dict[str, Any]) -> None:
        self._tr_loss += saved["loss"]
        self._total_loss_scalar -= saved["loss"]  # `train_loss` is a mean over the steps of this call of `train`
        self._globalstep_last_logged, self._total_train_tokens = saved["last_logged"], saved["tokens"]

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def own_tags(self) -> list[str]:
        """The tags that TRL puts on the model."""
        return self._tag_names

    @property
    def _name(self) -> str:
        return self.method_name or super()._name

    @property
    def _tag_names(self) -> list[str]:
        return ["trl", "trl_plus", self._name.lower()]

    def _send_telemetry(self) -> None:
        """Nothing: a run of ours reports to nobody unless the recipe says so."""

    def _compute_loss(self, model, inputs, return_outputs):
        loss = self.measured_loss(model, inputs)
        if not return_outputs:
            return loss
        # `compute_metrics` wants logits, which a fused head never builds: one more pass, as in TRL
        with torch.no_grad():
            return loss, model(**model_inputs(inputs), use_cache=False)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        prepare = super()._prepare_dataset
        return self.prepare_rows(
            dataset, dataset_name, lambda rows: prepare(rows, processing_class, args, dataset_name), processing_class
        )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in self.extra_columns if c not in self._signature_columns]

    def _save_checkpoint(self, model, trial):
        self.save_whole(super()._get_output_dir(trial), self.state.global_step)

    def _get_output_dir(self, trial):
        return self._part_folder or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder):
        """Nothing: the folder still has its temporary name; `push_checkpoint` comes when it is renamed."""

    def _save(self, output_dir=None, state_dict=None):
        if (save := super()._save) and self._part_folder is not None:
            save(output_dir, state_dict)
            if self.args.should_save:  # transformers calls this in every process
                self.checkpoint_is_written(output_dir)
            return None
        return self.save_files(output_dir or self.args.output_dir, lambda part: save(part, state_dict))

    def _load_rng_state(self, checkpoint):
        if not self.random_state_is_loaded:
            super()._load_rng_state(checkpoint)
            self.random_state_is_loaded = checkpoint is not None

    def _precompute_ref_logps(self, dataset, name, batch_size):
        compute, size = super()._precompute_ref_logps, self.reference_batch_size(dataset, batch_size)
        return self.reference_rows(dataset, name, lambda rows: compute(rows, name, size))

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        means = self.metric_means(mode)
        if mode == "eval" and self.eval_prefix.startswith("eval_"):
            # one of several evaluation sets: TRL would log each set's metrics under the same names
            logs.update({f"{self.eval_prefix}_{name}": value for name, value in means.items()})
            super().log(logs, start_time)
            # not logged: what `metric_for_best_model` and early stopping know by TRL's names. The last set counts
            logs.update({f"eval_{name}": value for name, value in means.items()})
            return
        self._metrics[mode].update({name: [value] for name, value in means.items()})
        super().log(logs, start_time)
