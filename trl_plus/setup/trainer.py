"""Tokenizer, adapter, trainer and model card of a run. What can be refused is refused before weights are loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_plus.data.loading import Data
from trl_plus.errors import DataError, RecipeError, first_line
from trl_plus.methods import trained_with
from trl_plus.recipes.package_data import resolve
from trl_plus.setup.objects import RunObjects

if TYPE_CHECKING:
    from trl_plus.runs.model_card import Card, Part

MOVED = "If the model lies elsewhere, name its folder with model_name_or_path=PATH."


def refuse_settings(objects: RunObjects) -> None:
    """Refuse settings that the trainer would refuse, before anything is loaded.

    Raises:
        RecipeError: a package is missing, or the optimizer lacks a setting.
    """
    from trl_plus.trainers.optimizers import refuse_missing

    try:
        refuse_missing(objects.args)
    except (ImportError, ValueError) as error:
        raise RecipeError(f"{objects.recipe.place_of(str(error))}{error}") from error


def load_processor(objects: RunObjects) -> Any:
    """The model's tokenizer (or processor, for a vision model), with `chat_template_path` applied.

    Raises:
        RecipeError: the model or the template cannot be found.
    """
    from transformers import AutoProcessor

    name = objects.model.model_name_or_path
    try:
        processor = AutoProcessor.from_pretrained(
            name, revision=objects.model.model_revision, trust_remote_code=objects.args.trust_remote_code
        )
        if objects.options.chat_template_path is not None:
            processor.chat_template = _fitting(_template(resolve(objects.options.chat_template_path)), processor)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The tokenizer of {name} could not be loaded: {first_line(error)} {MOVED}") from error
    return processor


def _template(path: str) -> str:
    """A chat template from a .jinja file or from the tokenizer of another model."""
    if path.endswith(".jinja"):
        return Path(path).expanduser().read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    template: str | None = AutoTokenizer.from_pretrained(path).chat_template
    if template is None:
        raise ValueError(f"`chat_template_path`: the tokenizer of {path} has no chat template either.")
    return template


def _fitting(template: str, processor: Any) -> str:
    """A template of another tokenizer, which may begin with a token that this one lacks and then writes none."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if "bos_token" not in template or tokenizer.bos_token is not None:
        return template
    return "{%- if bos_token is not defined -%}{%- set bos_token = '' -%}{%- endif -%}" + template


def check_data(objects: RunObjects, data: Data, processor: Any) -> None:
    """Refuse data that the tokenizer or the evaluation keys do not fit.

    Raises:
        DataError: conversations without a chat template, or an evaluation strategy without held-out rows.
    """
    if data.format.conversational and getattr(processor, "chat_template", None) is None:
        raise DataError(
            f"{objects.data.label} holds conversations, but the tokenizer of {objects.model.model_name_or_path} has no "
            "chat template: use an instruction-tuned model, or set `chat_template_path` to a .jinja file or to a model "
            "whose template fits."
        )
    check_held_out(objects, data)


def check_held_out(objects: RunObjects, data: Data) -> None:
    """Refuse an evaluation strategy without held-out rows.

    Raises:
        DataError: that is so.
    """
    problem = nothing_to_evaluate(objects.args, objects.data.label) if data.eval is None else None
    if problem is not None:
        raise DataError(problem)


def nothing_to_evaluate(args: Any, label: str) -> str | None:
    """The problem of a training configuration if nothing of the data called `label` is held out; None without one."""
    if args.eval_strategy == "no":
        return None
    return (
        f"`eval_strategy: {args.eval_strategy.value}` needs held-out rows, but {label} has no test split: set "
        "`eval_fraction: 0.05` or `eval_dataset_name`, or remove `eval_strategy`."
    )


def build_trainer(objects: RunObjects, data: Data, processor: Any, callbacks: list[Any]) -> Any:
    """The method's trainer. The model is loaded here.

    Raises:
        RecipeError: the trainer refuses the model, the adapter or the rows.
        DataError: no row, or no batch, is left after tokenization.
    """
    from trl import get_peft_config, get_quantization_config

    import trl_plus
    from trl_plus.upstream.models import ignore_bool_buffers

    trainer_class = getattr(trl_plus, objects.recipe.method.trainer)
    try:
        trainer = trainer_class(
            model=objects.model.model_name_or_path,
            args=objects.args,
            train_dataset=data.train,
            eval_dataset=data.eval,
            processing_class=processor,
            callbacks=callbacks,
            quantization_config=get_quantization_config(objects.model),
            peft_config=get_peft_config(objects.model),
        )
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "to be installed" not in str(error):  # a missing tracker's
            raise
        named = "lora_target_modules" if str(error).startswith("Target modules") else str(error)  # PEFT names no key
        raise RecipeError(f"{objects.recipe.place_of(named)}{error}") from error
    if hasattr(trainer.train_dataset, "__len__") and len(trainer.train_dataset) == 0:
        raise DataError(f"No row of {objects.data.label} fits into `max_length: {objects.args.max_length}`: raise it.")
    _refuse_dropped_batch(trainer, objects)
    if objects.recipe["ignore_bias_buffers"]:
        ignore_bool_buffers(trainer.model)
    return trainer


def _refuse_dropped_batch(trainer: Any, objects: RunObjects) -> None:
    """`dataloader_drop_last` with fewer rows than a batch leaves none; transformers then fails in its own words."""
    batch = objects.args.train_batch_size * objects.args.world_size
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else batch
    if objects.args.dataloader_drop_last and rows < batch:
        raise DataError(
            f"{objects.data.label} has {rows} rows, fewer than the {batch} of a batch, so `dataloader_drop_last` drops "
            "them all: lower `per_device_train_batch_size`, or remove it."
        )


# -- the model card -----------------------------------------------------------------------------------------------


def card_of(objects: RunObjects) -> "Card":
    """The card of a run before its trainer has added weights, rows and metrics."""
    from trl_plus.runs.model_card import Card  # imports the hub's client

    recipe = objects.recipe
    return Card(
        name="",
        methods=trained_with(recipe.method.family, objects.args),
        base=str(recipe["model_name_or_path"]),
        data=_parts(objects),
        recipe={"method": recipe.method.name, **recipe.values},
        tags=[recipe.method.name],
    )


def _parts(objects: RunObjects) -> "list[Part]":
    from trl_plus.runs.model_card import Part

    recipe, data = objects.recipe, objects.data
    if data.mixture:
        parts = [Part(str(entry["path"]), _more(entry.get("name"), entry.get("split"))) for entry in data.mixture]
    else:
        parts = [Part(str(recipe["dataset_name"]), _more(data.config, data.train_split))]
    if data.eval_name is not None:
        parts.append(Part(str(recipe["eval_dataset_name"]), "held-out rows", trained=False))
    return parts


def _more(config: str | None, split: str | None) -> str:
    words = [f"configuration {config}"] if config else []
    return ", ".join([*words, *([f"split {split}"] if split else [])])
