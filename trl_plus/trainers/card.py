"""The model card of a trainer: TRL's `create_model_card`, with what TRL's template does not know."""

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from trl_plus.methods import trained_with
from trl_plus.runs.model_card import Card, Part, card_text
from trl_plus.upstream.models import base_model, is_peft

CARD = "README.md"
_KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA"}


class ModelCards:
    """Mixed in before a trainer and above `Seams`.

    Attributes:
        card: what a run knows and the trainer does not (data, recipe, base by the name it was given); None without one.
    """

    card: Card | None = None

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes `README.md` into `output_dir`, on the main process. Arguments are TRL's.

        Args:
            dataset_name: a hub id or a path; it is remembered for the cards of later checkpoints.
        """
        if dataset_name is not None:
            self.card = replace(self.card or self._own_card(), data=[Part(dataset_name)])
        if self.is_world_process_zero():
            self.write_card(Path(self.args.output_dir), model_name, tags)

    def write_card(self, folder: Path, model_name: str | None = None, tags: str | list[str] | None = None) -> None:
        """The card of the model as it is now, in a folder."""
        more = [tags] if isinstance(tags, str) else list(tags or [])
        links = tracker_links()
        known = replace(
            self.card or self._own_card(),
            name=model_name or (self.hub_model_id or Path(self.args.output_dir).absolute().name).split("/")[-1],
            hub_id=self.hub_model_id,
            tags=sorted({*self.own_tags, *more, *(f"trackio:{url}" for name, url in links if name == "Trackio")}),
            links=links,
            **self._weights(),
            **self._rows(),
            **self._held_out(),
        )
        part = folder / f".{CARD}.part"
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(card_text(known), encoding="utf-8")
        part.replace(folder / CARD)

    def _own_card(self) -> Card:
        family = type(self).config_class.family
        return Card(
            name="",
            methods=trained_with(family, self.args),
            base=getattr(self.model.config, "_name_or_path", "") or None,
            recipe={"method": family.name.lower(), **changed_values(self.args)},
            recipe_says=f"Values of `{type(self.args).__name__}` that are not its defaults.",
        )

    def _weights(self) -> dict[str, Any]:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        inner = base_model(self.model)
        bits = [f"{n} bits" for n in (4, 8) if getattr(inner, f"is_loaded_in_{n}bit", False)]
        return {
            "adapter": adapter_words(self.model.active_peft_config) if is_peft(self.model) else None,
            "quantized": bits[0] if bits else None,
            "chat": getattr(tokenizer, "chat_template", None) is not None,
        }

    def _rows(self) -> dict[str, Any]:
        held_out = self.eval_dataset
        sets = list(held_out.values()) if isinstance(held_out, dict) else [] if held_out is None else [held_out]
        counts = [_count(rows) for rows in sets]
        return {
            "rows": _count(self.train_dataset),
            "held_out_rows": None if None in counts else sum(counts),
        }

    def _held_out(self) -> dict[str, Any]:
        """The newest held-out metrics of these weights; those before training are the base's, and no model's here."""
        history = self.state.log_history
        ends = [at for at, line in enumerate(history) if "train_runtime" in line]
        after = [line for line in history[ends[-1] + 1 :] if _is_evaluation(line)] if ends else []
        found = [line for line in history if _is_evaluation(line) and line["step"]]
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and not self.is_in_train and best:
            found = after or [line for line in found if line["step"] == best]
        line = found[-1] if found else {}
        step = best if after and self.args.load_best_model_at_end and best else line.get("step", 0)
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
