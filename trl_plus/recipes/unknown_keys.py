"""Messages for unknown recipe keys: the new name, the method it belongs to, or the closest match."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from trl_plus.methods import METHODS, Method
from trl_plus.recipes.keys import keys_of, owners, without_effect
from trl_plus.recipes.yaml_text import inline


def explain(name: str, value: Any, method: Method) -> str:
    """One sentence on why `name` is refused under `method`, and what to write instead."""
    known = keys_of(method)
    if name in RENAMED:
        return _renamed(name, value, method)
    if name in REPLACED or name in REFUSED:
        return f"`{name}` is not a key of a recipe: {(REPLACED | REFUSED)[name]}."
    reasons = without_effect(method)
    if name in reasons:
        return f"`{name}` has no effect with method {method.name}, since {reasons[name]}: remove it."
    if owners(name):
        others = owners(name)
        return (
            f"`{name}` belongs to method {' and '.join(others)}, not to {method.name}: remove it, "
            f"or write `method: {others[0]}`."
        )
    positive = name.removeprefix("no_")
    if positive != name and positive in known and known[positive].is_boolean:
        return f"unknown key `{name}`: write `{positive}: false`."
    nearest = get_close_matches(name, [*known, "method"], n=1, cutoff=0.72)
    if nearest:
        return f"unknown key `{name}`: did you mean `{nearest[0]}`?"
    return f"unknown key `{name}`: remove it; `trl-plus schema` lists every key."


def _renamed(name: str, value: Any, method: Method) -> str:
    new, value = RENAMED[name], value_today(name, value)
    if new == "loss_type" and isinstance(value, str) and value in METHODS:
        return f"`{name}: {value}` is a method: write `method: {value}`."
    if new == "eval_fraction" and isinstance(value, (int, float)) and value >= 1:
        return f"`{name}` is now `eval_fraction`, a share of the rows: write `eval_fraction: 0.1` for a tenth of them."
    if new == "dataset_name" and (isinstance(value, list) or (isinstance(value, str) and "," in value)):
        parts = value if isinstance(value, list) else value.split(",")
        paths = ", ".join(f"{{path: {str(part).strip()}}}" for part in parts)
        return f"`{name}` names several datasets: write `datasets: [{paths}]`."
    if new in keys_of(method):
        return f"`{name}` is now `{new}`: write `{new}: {inline(value)}`."
    others = owners(new)
    whose = f", a key of method {' and '.join(others)}" if others else ""
    return f"`{name}` is now `{new}`{whose}."


def unknown_in_entry(name: str, keys: Collection[str]) -> str:
    """One sentence on a key that an entry of `datasets` must not have."""
    guess = meant(name, keys)
    return f"unknown key `{name}`: {guess}{'The' if guess else 'the'} keys are {', '.join(keys)}."


def meant(name: Any, known: Collection[str]) -> str:
    """ "did you mean ...? " if one of the names is near, else nothing."""
    nearest = get_close_matches(str(name).lower(), known, n=1, cutoff=0.6)
    return f"did you mean `{nearest[0]}`? " if nearest else ""


def unknown_method(name: Any) -> str:
    """One sentence on a value of `method` that is none."""
    nearest = get_close_matches(str(name).lower(), METHODS, n=1, cutoff=0.5)
    guess = f"did you mean `{nearest[0]}`? " if nearest else ""
    return f"unknown method {name!r}: {guess}The methods are {', '.join(METHODS)}."


# old key: the key that takes the same value today
RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "preprocessing_num_workers": "dataset_num_proc",
    "simpo_gamma": "gamma",
    "orpo_alpha": "beta",
    "orpo_lambda": "beta",
    "lambda": "beta",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "hub_model_revision": "hub_revision",
    "push_to_hub_model_id": "hub_model_id",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "base_model_revision": "model_revision",
    # axolotl and LLaMA-Factory
    "base_model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "dataset_id": "dataset_name",
    "val_size": "eval_fraction",
    "val_set_size": "eval_fraction",
    "test_size": "eval_fraction",
    "sequence_len": "max_length",
    "model_max_length": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "gradient_checkpointing_enable": "gradient_checkpointing",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "wandb_name": "run_name",
    "eval_dataset": "eval_dataset_name",
    "revision_of_model": "model_revision",
    "dataset_processes": "dataset_num_proc",
    "additional_target": "lora_modules_to_save",
    # ms-swift and OpenRLHF
    "model": "model_name_or_path",
    "pretrain": "model_name_or_path",
    "target_modules": "lora_target_modules",
    "attn_impl": "attn_implementation",
    "val_dataset": "eval_dataset_name",
    "split_dataset_ratio": "eval_fraction",
    "max_epochs": "num_train_epochs",
    "max_len": "max_length",
    "micro_train_batch_size": "per_device_train_batch_size",
}

# (old key, value): the value of the new key
VALUES = {("lora_target", "all"): "all-linear", ("attn_impl", "flash_attn"): "flash_attention_2"}
_LISTS = ("lora_target", "target_modules", "additional_target")  # names with commas between them


def value_today(name: str, value: Any) -> Any:
    """The value of the new key that an old key's value stands for."""
    if name in _LISTS and isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",")]
    return VALUES.get((name, value), value) if isinstance(value, str) else value


_ONE_LIMIT = (
    "write `max_length`, which bounds prompt and completion together, and `overlong` for what happens beyond it"
)
_PEFT_REFERENCE = "remove it: with LoRA the reference is the model without its adapter"
_MIXTURE = "write `dataset_name`, or a list `datasets` of {path, name, split, columns, fraction}"
_OWN_TOKENIZER = "remove it: the tokenizer is the one in the model's folder"
_NEVER_REQUIRED = "remove it: it is chosen automatically"
_GENERATIONS = "write `report_generations`, the number of held-out prompts answered before and after training"

# old key: what to do instead, as the end of a sentence
REPLACED = {
    "max_prompt_length": _ONE_LIMIT,
    "max_completion_length": _ONE_LIMIT,
    "max_target_length": _ONE_LIMIT,
    "warmup_ratio": "write `warmup_steps`: below 1 it is a share of all steps, so `warmup_ratio: 0.1` is "
    "`warmup_steps: 0.1`",
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "use_flash_attention_2": "write `attn_implementation: flash_attention_2`",
    "flash_attn": "write `attn_implementation: flash_attention_2`",
    "rpo_alpha": "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, ALPHA]`",
    "pref_ftx": "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, WEIGHT]`",
    "dpo_alpha": "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, WEIGHT]`",
    "reference_free": "remove it: choose a method without a reference, such as `method: simpo` or `method: cpo`",
    "dataset_mixer": _MIXTURE,
    "dataset_mixture": _MIXTURE,
    "dataset_configs": "write `dataset_config`",
    "dataset_splits": "write `dataset_train_split` and `dataset_test_split`",
    "chat_template": "save the template to a .jinja file and name it with `chat_template_path`",
    "tokenizer_name": _OWN_TOKENIZER,
    "tokenizer_name_or_path": _OWN_TOKENIZER,
    "truncation_side": "remove it: completions are cut at the end (see `overlong`)",
    "auto_insert_empty_system_msg": "remove it: put the system message into the data",
    "text_column": "remove it: columns are recognised by name (prompt, chosen, rejected, completion, label)",
    "model_adapter_name": _PEFT_REFERENCE,
    "ref_adapter_name": _PEFT_REFERENCE,
    "force_use_ref_model": _PEFT_REFERENCE,
    "ref_model_init_kwargs": "remove it: the reference is loaded as the model is (`model_init_kwargs`)",
    "generate_during_eval": _GENERATIONS,
    "label_pad_token_id": _NEVER_REQUIRED,
    "padding_value": _NEVER_REQUIRED,
    "is_encoder_decoder": "remove it: only decoder-only models are supported",
    "use_num_logits_to_keep": _NEVER_REQUIRED,
    "use_logits_to_keep": _NEVER_REQUIRED,
    "base_model_attribute_name": _NEVER_REQUIRED,
    "use_liger_loss": "remove it, or write `use_liger_kernel: true`",
    "alpha": "remove it: AlphaPO is not supported; for SimPO write `method: simpo`",
    "overwrite_output_dir": "remove it: without `--resume` a run always starts afresh",
    "save_safetensors": "remove it: weights are always saved as safetensors",
    "logging_dir": "remove it: set the environment variable TENSORBOARD_LOGGING_DIR",
    "use_mps_device": "remove it: the device is found automatically",
    "fp16_backend": "write `fp16: true`",
    "half_precision_backend": "write `fp16: true`",
    "fp16_opt_level": "write `fp16: true`",
    "include_inputs_for_metrics": "remove it",
    "include_tokens_per_second": "write `include_num_input_tokens_seen: true`",
    "dispatch_batches": "write `accelerator_config: {dispatch_batches: ...}`",
    "split_batches": "write `accelerator_config: {split_batches: ...}`",
    "fsdp_min_num_params": "write it in `fsdp_config`",
    "fsdp_transformer_layer_cls_to_wrap": "write it in `fsdp_config`",
    "jit_mode_eval": "remove it",
    "torchdynamo": "write `torch_compile_backend`",
    "tpu_num_cores": "remove it",
    "adapter": "write `use_peft: true` for LoRA, and `load_in_4bit: true` beside it for QLoRA",
    "rl": "write `method`",
    "rlhf_type": "write `method`",
    "gradient_checkpointing_use_reentrant": "write `gradient_checkpointing_kwargs: {use_reentrant: true}`",
    "saves_per_epoch": "write `save_strategy: epoch`, or `save_steps`",
    "evals_per_epoch": "write `eval_strategy: epoch`, or `eval_strategy: steps` and `eval_steps`",
    "prompt_key": "write `columns`, as `columns: {prompt: question}`",
    "chosen_key": "write `columns`, as `columns: {chosen: better}`",
    "rejected_key": "write `columns`, as `columns: {rejected: worse}`",
    "apply_chat_template": "remove it: the chat template writes messages, and `converter: text` makes them of texts",
    "rl_type": "write `method`",
    "train_type": "write `use_peft: true` for LoRA; nothing for full fine-tuning",
    "lora_target_linear": "write `lora_target_modules: all-linear`",
    "load_best_model": "write `load_best_model_at_end: true`",
    "quantization_bit": "write `load_in_4bit: true` or `load_in_8bit: true`",
    "template": "remove it: the chat template is the tokenizer's, or the one that `chat_template_path` names",
    "dataset_dir": "remove it: `dataset_name` takes the path of a file or folder",
    "dataset_prepared_path": "remove it: prepared rows are kept in the cache of `datasets`",
    "sample_packing": "remove it: rows are packed where it is right (`layout`)",
    "flash_attention": "write `attn_implementation: flash_attention_2`",
    "sdp_attention": "write `attn_implementation: sdpa`",
    "wandb_project": "write `report_to: wandb`, and export WANDB_PROJECT in the shell",
    "special_tokens": "remove it: the tokenizer is the one in the model's folder",
    "test_datasets": "write `eval_dataset_name`",
    "field_messages": "write `columns`, as `columns: {messages: conversation}`",
    "message_property_mappings": "write `converter: sharegpt`, or `columns` for names of columns",
    "stage": "write `method`",
    "finetuning_type": "write `use_peft: true` for LoRA; nothing for full fine-tuning",
    "env": "remove it and export the variables in the shell",
    "config": "remove it: give the recipe's path as the argument",
    "accelerate_config": "give it on the command line: `--accelerate-config NAME`",
    "num_processes": "give it on the command line: `--num-processes N`",
    "device_map": "remove it: the model is placed by accelerate",
}

# Keys that the configurations of TRL and transformers still have but a recipe must not set, and why.
REFUSED = {
    "do_train": "remove it: `trl-plus train` always trains",
    "do_eval": "remove it: held-out rows are evaluated before and after training; `eval_strategy` controls evaluation "
    "during training",
    "do_predict": "remove it",
    "resume_from_checkpoint": "give it on the command line: `--resume PATH`",
    "local_rank": "remove it: the launcher sets it",
    "parallelism_config": "give a configuration on the command line: `--accelerate-config PATH`",
    "hub_token": "remove it, since recipes are saved with the run, and log in with `hf auth login`",
    "label_smoothing_factor": "no preference loss reads it: write `label_smoothing`",
    "padding_free": "remove it: TRL switches it off",
    "include_for_metrics": "remove it: it has no effect without a metrics function",
    "batch_eval_metrics": "remove it: it has no effect without a metrics function",
    "pad_token": "remove it and set the pad token in the tokenizer's folder",
    "eval_on_start": "remove it: held-out rows are always evaluated before training",
    "lora_task_type": "remove it: the task is always causal language modelling",
}
