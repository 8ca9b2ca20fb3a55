"""The content of a model card, and its text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trl_plus.data.files import is_local
from trl_plus.methods import Loss
from trl_plus.papers import TRL
from trl_plus.recipes.keys import SECRET
from trl_plus.ui.environment import versions

_BEGIN, _END = "<!-- weights -->", "<!-- /weights -->"  # `merge` puts another sentence between them
_PACKAGES = ("trl-plus", "trl", "transformers", "peft", "torch", "datasets", "accelerate", "tokenizers")
# name in the log -> (type in the model index, name there)
_INDEXED = {
    "eval_rewards/accuracies": ("accuracy", "Reward accuracy"),
    "eval_rewards/margins": ("reward_margin", "Reward margin"),
    "eval_loss": ("loss", "Loss"),
}
_UNTOLD = ("_runtime", "_per_second", "_num_tokens")  # of a machine, not of a model


@dataclass(frozen=True)
class Part:
    """A dataset, or one entry of a mixture.

    Attributes:
        name: hub id or local path.
        more: which rows of it, such as "split train".
        trained: whether it was trained on, and not only evaluated.
    """

    name: str
    more: str = ""
    trained: bool = True


@dataclass(frozen=True)
class Card:
    """The facts.

    Attributes:
        base: hub id or path of the model that training began with; None if it was built in memory.
        adapter: such as "LoRA adapter of rank 16"; None for full weights.
        quantized: such as "4 bits"; None if the base was not.
        rows, held_out_rows: as trained and evaluated; None for a stream, 0 held-out rows for none.
        counted: False if the two are not known.
        recipe: keys and values as they were given.
        recipe_says: which keys those are, one sentence.
        metrics: held-out metrics at optimizer step `step`, by the names of the log.
        links: trackers, (title, url).
    """

    name: str
    methods: Sequence[Loss]
    base: str | None
    adapter: str | None = None
    quantized: str | None = None
    data: Sequence[Part] = ()
    rows: int | None = None
    held_out_rows: int | None = 0
    counted: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_says: str = "Keys that are not here have their defaults."
    metrics: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    chat: bool = True
    hub_id: str | None = None
    tags: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()


def card_text(card: Card) -> str:
    """The card as Markdown with its metadata, for README.md."""
    recipe = yaml.safe_dump(_published(card.recipe), sort_keys=False, allow_unicode=True, width=10**6).rstrip()
    papers = {method.paper.bibtex: None for method in card.methods if method.paper is not None}
    linked = [
        method.title if method.paper is None else f"{method.title} ([{method.paper.title}]({method.paper.link}))"
        for method in card.methods
    ]
    text = _template().render(
        card=card,
        metadata=_metadata(card).to_yaml(),
        weights_begin=_BEGIN,
        weights=_weights(card),
        weights_end=_END,
        methods=" and ".join(linked),
        data=[_part(part) for part in card.data],
        rows=_rows(card),
        metrics=_told(card.metrics),
        recipe=recipe,
        recipe_says=card.recipe_says,
        fence="`" * max(3, 1 + max((len(run) for run in re.findall("`+", recipe)), default=0)),
        versions=[(name, known) for name, known in versions(_PACKAGES).items() if known is not None],
        citations=[*papers, TRL],
    )
    return text.rstrip() + "\n"


def is_ours(path: Path) -> bool:
    """True if a card may be written to a path: there is none, or one that we or PEFT generated."""
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    return _BEGIN in text or "[More Information Needed]" in text


def merged_text(
    text: str, base: str | None, adapter: str, dtype: str, name: str, dequantized: bool = False
) -> str | None:
    """The card of an adapter, rewritten for the weights that it was merged into; None if it is not a card of ours.

    Everything else is kept, what was written into it by hand, too.
    """
    if not re.search(f"{_BEGIN}.*?{_END}", text, re.DOTALL):
        return None
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.library_name = "transformers"
    if card.data.base_model is not None:
        card.data["base_model_relation"] = "finetune"
    card.data.tags = [tag for tag in card.data.tags or [] if tag not in ("lora", "peft")]
    words = base_words(base)
    first = " The base's quantized weights were dequantized first." if dequantized else ""
    sentence = f"{words[0].upper()}{words[1:]} with its {adapter} merged into the weights, which are in {dtype}.{first}"
    body = re.sub(f"{_BEGIN}.*?{_END}", lambda _: f"{_BEGIN}\n{sentence}\n{_END}", card.text, count=1, flags=re.DOTALL)
    body = re.sub(r'model="path/to/[^"]*"', lambda _: f'model="path/to/{name}"', body)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def base_words(base: str | None) -> str:
    """The base model as a reader is told of it: a link for one on the hub, a name for a folder."""
    if base is None:
        return "a model that was built in memory"
    if _on_hub(base):
        return f"[{base}](https://huggingface.co/{base})"
    return f"the local model `{_plain(base if base.startswith('bundled:') else Path(base).name)}`"


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    return environment.get_template("card.md.j2")


def _metadata(card: Card) -> ModelCardData:
    """The card's YAML. The hub knows its own models and datasets only, so nothing local is named."""
    base = card.base if card.base is not None and _on_hub(card.base) else None
    data = ModelCardData(
        base_model=base,
        datasets=sorted({part.name for part in card.data if part.trained and _is_hub_dataset(part.name)}) or None,
        library_name="transformers" if card.adapter is None else "peft",
        model_name=card.name,
        pipeline_tag="text-generation",
        tags=sorted({"trl", "trl_plus", *card.tags, *(["lora"] if "LoRA" in (card.adapter or "") else [])}),
        eval_results=_results(card) or None,
    )
    if base is not None:
        data["base_model_relation"] = "finetune" if card.adapter is None else "adapter"
    return data


def _results(card: Card) -> list[EvalResult]:
    evaluated = [part for part in card.data if not part.trained] or card.data
    name = " + ".join(_name(part) for part in evaluated) or "held-out rows"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            metric_type=kind,
            metric_name=title,
            metric_value=float(card.metrics[metric]),
        )
        for metric, (kind, title) in _INDEXED.items()
        if isinstance(card.metrics.get(metric), int | float)
    ]


def _weights(card: Card) -> str:
    bits = f", trained on the base in {card.quantized}" if card.quantized else ""
    if card.adapter is None:
        return f"Full weights, fine-tuned from {base_words(card.base)}{bits}."
    return f"{card.adapter[0].upper()}{card.adapter[1:]} for {base_words(card.base)}{bits}."


def _part(part: Part) -> str:
    if _is_hub_dataset(part.name):
        shown = f"[{part.name}](https://huggingface.co/datasets/{part.name})"
    else:
        shown = f"the local data `{_name(part)}`"
    return f"{shown}, {part.more}" if part.more else shown


def _rows(card: Card) -> str:
    if not card.counted:
        return ""
    rows = "A stream of rows" if card.rows is None else f"{card.rows:,} rows"
    if card.held_out_rows == 0:
        return f"{rows} were trained on; none are held out."
    held_out = "others" if card.held_out_rows is None else f"{card.held_out_rows:,} others"
    return f"{rows} were trained on, {held_out} are held out."


def _told(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, f"{value:.4g}")
        for name, value in metrics.items()
        if name.startswith("eval_") and isinstance(value, int | float) and not name.endswith(_UNTOLD)
    ]


def _published(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that can be shown to anyone: no secrets, and of a path on this machine its last part."""
    return {
        name: "(hidden)" if SECRET.search(name) and value is not None else _shortened(value)
        for name, value in recipe.items()
    }


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _published(value)
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return f"path/to/{Path(value).name}"
    return value


def _name(part: Part) -> str:
    return part.name if _is_hub_dataset(part.name) else _plain(Path(part.name).name)


def _is_hub_dataset(name: str) -> bool:
    return not name.startswith("bundled:") and not is_local(name)


def _on_hub(model: str) -> bool:
    return not model.startswith(("bundled:", ".", "~")) and not Path(model).is_absolute() and not Path(model).is_dir()


def _plain(name: str) -> str:
    return name.replace("`", "'").replace("\n", " ")
