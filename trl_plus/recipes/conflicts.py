"""Keys that need, exclude or switch off each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trl_plus.methods import Method
from trl_plus.recipes.keys import Key, Value, keys_of
from trl_plus.recipes.options import exclusions, is_given


def contradictions(method: Method, entries: Mapping[str, Value]) -> Iterator[str]:
    """Sentences on keys that contradict the method or each other."""
    for name, fixed in method.fixed.items():
        entry = entries.get(name)
        if entry is not None and entry.value != fixed:
            yield (
                f"{entry.place}`{name}: {entry.value}` contradicts `method: {method.name}`, which is {fixed}: remove "
                f"it, or write `method: {'dpo' if method.paired else 'kto'}`."
            )
    given = {name: entry.value for name, entry in entries.items() if is_given(entry.value)}
    for name, sentence in exclusions(given, {name: key.declared for name, key in keys_of(method).items()}):
        yield f"{entries[name].place}{sentence}"
    for option in ("load_in_4bit", "load_in_8bit"):
        if option in given and "use_peft" not in given:
            yield f"{entries[option].place}`{option}` needs `use_peft: true`: quantized weights cannot be trained."
    yield from _lora_on_head(entries, given)
    if method.paired and given.get("converter") == "pairs_to_unpaired":
        yield (
            f"{entries['converter'].place}`converter: pairs_to_unpaired` makes labelled rows, but `method: "
            f"{method.name}` compares pairs: remove it, or write `method: kto`."
        )


def _lora_on_head(entries: Mapping[str, Value], given: Mapping[str, Any]) -> Iterator[str]:
    """LoRA on the LM head, whose weight the log-probabilities are computed from: its matrices would get no gradient."""
    targets = given.get("lora_target_modules")
    for name in targets if isinstance(targets, list) else []:
        if isinstance(name, str) and name.split(".")[-1] in ("lm_head", "embed_out"):
            kept = given.get("lora_modules_to_save") or []
            saved = ", ".join(dict.fromkeys([*(kept if isinstance(kept, list) else [kept]), name]))
            yield (
                f"{entries['lora_target_modules'].place}`lora_target_modules`: LoRA on {name} would not be trained. "
                f"Fix: remove {name} from it, and to train the whole head write `lora_modules_to_save: [{saved}]`."
            )


# -- the best checkpoint and early stopping -------------------------------------------------------------------------


def best_model_problems(method: Method, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for each problem. Values that are not given have their defaults."""
    read = _reader(method, values)
    if read("early_stopping_patience") is not None and not (
        read("load_best_model_at_end") or read("metric_for_best_model")
    ):
        yield (
            "early_stopping_patience",
            "`early_stopping_patience` waits for a metric to improve: add `load_best_model_at_end: true` and "
            f"`metric_for_best_model: rewards/{'accuracies' if method.paired else 'margins'}`.",
        )
    if not read("load_best_model_at_end"):
        return
    evaluates, saves = read("eval_strategy"), read("save_strategy")
    every, eval_every = read("save_steps"), _eval_steps(read)
    if evaluates == "no":
        yield (
            "load_best_model_at_end",
            "`load_best_model_at_end` compares evaluations during training: add `eval_strategy: steps` and "
            "`eval_steps`.",
        )
    elif saves not in (evaluates, "best"):
        yield (
            "load_best_model_at_end",
            f"`load_best_model_at_end` needs a checkpoint of what was evaluated: `eval_strategy` is {evaluates}, so "
            f"write `save_strategy: {evaluates}` or `save_strategy: best` instead of {saves}.",
        )
    # transformers compares shares of the run, below 1
    elif evaluates == saves == "steps" and min(every, eval_every) >= 1 and every % eval_every:
        yield (
            "load_best_model_at_end",
            f"`load_best_model_at_end` needs a checkpoint of what was evaluated: `save_steps` is {every}, so "
            f"write a multiple of `eval_steps`, which is {eval_every}; the same number is best.",
        )


def best_model_notes(method: Method, values: Mapping[str, Any]) -> list[str]:
    """Notes on a valid recipe."""
    read = _reader(method, values)
    if not read("load_best_model_at_end") or not read("eval_strategy") == read("save_strategy") == "steps":
        return []
    evaluates, saves = _eval_steps(read), read("save_steps")
    if evaluates == saves:
        return []
    return [
        f"Evaluations come every {evaluates} steps and checkpoints every {saves}: where the best evaluation has no "
        "checkpoint, an older one is loaded at the end. With save_steps = eval_steps every one has."
    ]


def _reader(method: Method, values: Mapping[str, Any]) -> Any:
    keys = keys_of(method)
    return lambda name: values.get(name, keys[name].default)


def _eval_steps(read: Any) -> Any:
    steps = read("eval_steps")
    return read("logging_steps") if steps is None else steps


# -- keys that another key switches off -----------------------------------------------------------------------------


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
