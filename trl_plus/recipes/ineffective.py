"""Keys that another key makes meaningless: refused in a recipe, left out where the command line decided so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_plus.recipes.checks import Value, is_given
from trl_plus.recipes.keys import Key


@dataclass(frozen=True)
class Rule:
    """`names` are read only if `decider` has one of `values`; with no `values`, only if it is given at all."""

    names: tuple[str, ...]
    decider: str
    values: tuple[Any, ...] = ()
    unless: bool = False  # turns the rule round: read only if the decider is *not* given

    def reads(self, value: Any) -> bool:
        given = value in self.values if self.values else is_given(value)
        return given != self.unless


_LORA = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "use_rslora",
    "use_dora",
)
_RULES = (
    Rule(_LORA, "use_peft"),
    Rule(("lora_dropout",), "disable_dropout", (False,)),  # TRL switches every dropout off otherwise, LoRA's too
    Rule(("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), "load_in_4bit"),
    Rule(("streaming", "test_split_size"), "datasets"),
    Rule(("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming"), "datasets", unless=True),
    Rule(("eval_steps",), "eval_strategy", ("steps",)),
    Rule(("save_steps",), "save_strategy", ("steps",)),
    Rule(("early_stopping_patience",), "eval_strategy", ("steps", "epoch")),
    Rule(("early_stopping_threshold",), "early_stopping_patience"),
    Rule(("gamma_beta_ratio",), "gamma", unless=True),
)


def split_off(entries: Mapping[str, Value], keys: Mapping[str, Key]) -> tuple[dict[str, Value], list[str], list[str]]:
    """Separate the keys that are read from those that another key makes meaningless.

    Returns:
        the entries that are read; one problem for each inert key that the recipe itself made inert; and one note for
        each that an override on the command line made inert, which is left out.
    """
    kept, problems, notes = dict(entries), [], []
    for rule in _RULES:
        decider = entries.get(rule.decider)
        value = decider.value if decider is not None else _default(rule.decider, keys)
        if rule.reads(value):
            continue
        for name in rule.names:
            entry = entries.get(name)
            if entry is None or not is_given(entry.value):
                continue
            if decider is not None and decider.origin == "command line" and entry.origin != "command line":
                del kept[name]
                notes.append(f"`{name}` of the recipe is left out: {rule.decider}={value} was given.")
            elif name != "gamma_beta_ratio":  # two gammas have a message of their own
                problems.append(f"{entry.place}`{name}` has no effect {_why(rule)}.")
    return kept, problems, notes


def _default(name: str, keys: Mapping[str, Key]) -> Any:
    return keys[name].default if name in keys else None


def _why(rule: Rule) -> str:
    if rule.unless:
        return f"next to `{rule.decider}`: remove it"
    if rule.values:
        value = str(rule.values[0]).lower() if isinstance(rule.values[0], bool) else rule.values[0]
        return f"without `{rule.decider}: {value}`: add that, or remove it"
    if rule.decider == "datasets":
        return "without a list `datasets`: remove it"
    if rule.decider == "early_stopping_patience":
        return f"without `{rule.decider}`: add that, or remove it"
    return f"without `{rule.decider}: true`: add that, or remove it"
