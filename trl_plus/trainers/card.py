"""The model card of a trainer: TRL's `create_model_card`, with what TRL's template does not know."""

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from trl_plus.methods import trained_with
from trl_plus.runs.model_card import Card, card_text
from trl_plus.upstream.models import base_model, is_peft

CARD = "README.md"
_KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA"}


def write_card(trainer: Any, folder: Path, model_name: str | None = None, tags: str | list[str] | None = None) -> None:
    """Write the card of a trainer's model as it is now into a folder.

    Args:
        trainer: its `card` is what a run knows and the trainer does not (data, recipe, base by the name it was given);
            None without a run.
        model_name, tags: those of TRL's `create_model_card`.
    """
    more = [tags] if isinstance(tags, str) else list(tags or [])
    links = tracker_links()
    own_name = (trainer.hub_model_id or Path(trainer.args.output_dir).absolute().name).split("/")[-1]
    known = replace(
        trainer.card or card_without_run(trainer),
        name=model_name or own_name,
        hub_id=trainer.hub_model_id,
        tags=sorted({*trainer.own_tags, *more, *(f"trackio:{url}" for name, url in links if name == "Trackio")}),
        links=links,
        **_weights(trainer),
        **_rows(trainer),
        **_held_out(trainer),
    )
    part = folder / f".{CARD}.part"
    folder.mkdir(parents=True, exist_ok=True)
    part.write_text(card_text(known), encoding="utf-8")
    part.replace(folder / CARD)


def card_without_run(trainer: Any) -> Card:
    """The card of a trainer without a recipe: its method, and the settings that are not defaults."""
    family = type(trainer).config_class.family
    return Card(
        name="",
        methods=trained_with(family, trainer.args),
        base=getattr(trainer.model.config, "_name_or_path", "") or None,
        recipe={"method": family.name.lower(), **changed_values(trainer.args)},
        recipe_says=f"Values of `{type(trainer.args).__name__}` that are not its defaults.",
    )


def _weights(trainer: Any) -> dict[str, Any]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    inner = base_model(trainer.model)
    bits = [f"{n} bits" for n in (4, 8) if getattr(inner, f"is_loaded_in_{n}bit", False)]
    return {
        "adapter": adapter_words(trainer.model.active_peft_config) if is_peft(trainer.model) else None,
        "quantized": bits[0] if bits else None,
        "chat": getattr(tokenizer, "chat_template", None) is not None,
    }


def _rows(trainer: Any) -> dict[str, Any]:
    held_out = trainer.eval_dataset
    sets = list(held_out.values()) if isinstance(held_out, dict) else [] if held_out is None else [held_out]
    counts = [_count(rows) for rows in sets]
    return {
        "rows": _count(trainer.train_dataset),
        "held_out_rows": None if None in counts else sum(counts),
    }


def _held_out(trainer: Any) -> dict[str, Any]:
    """The newest held-out metrics of these weights; those before training are the base's, and no model's here."""
    history = trainer.state.log_history
    ends = [at for at, line in enumerate(history) if "train_runtime" in line]
    after = [line for line in history[ends[-1] + 1 :] if _is_evaluation(line)] if ends else []
    found = [line for line in history if _is_evaluation(line) and line["step"]]
    best = trainer.state.best_global_step
    if trainer.args.load_best_model_at_end and not trainer.is_in_train and best:
        found = after or [line for line in found if line["step"] == best]
    line = found[-1] if found else {}
    step = best if after and trainer.args.load_best_model_at_end and best else line.get("step", 0)
    return {"metrics": {name: value for name, value in line.items() if name != "step"}, "step": step}


def adapter_words(config: Any) -> str:
    """Such as "LoRA adapter of rank 16"."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    name = "DoRA (LoRA)" if getattr(config, "use_dora", False) else _KINDS.get(kind, kind)
    rank = getattr(config, "r", None)
    return f"{name} adapter" + (f" of rank {rank}" if rank else "")


def changed_values(args: Any) -> dict[str, Any]:
    """The plain values of a configuration that are not its defaults."""
    found = {}
    for field in fields(args):
        value, default = _plain(getattr(args, field.name)), _plain(field.default)
        if field.init and field.name != "output_dir" and value != default and not isinstance(value, _Other):
            if value is None or value in ([], {}):
                continue
            found[field.name] = value
    return found


def tracker_links() -> list[tuple[str, str]]:
    """(tracker, address) of the run that is being tracked, of those trackers that show it on the web."""
    from trl.trainer.utils import get_comet_experiment_url, get_trackio_space_url

    wandb = sys.modules.get("wandb")
    found = [
        ("Trackio", get_trackio_space_url()),
        ("Weights & Biases", getattr(getattr(wandb, "run", None), "url", None)),
        ("Comet", get_comet_experiment_url()),
    ]
    return [(name, str(url)) for name, url in found if url]


class _Other:
    """A value that no recipe holds."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, bool | int | float | str) for item in value):
        return list(value)
    return _Other()


def _count(rows: Any) -> int | None:
    return len(rows) if hasattr(rows, "__len__") else None


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval_") and name.endswith("_loss") for name in line)
