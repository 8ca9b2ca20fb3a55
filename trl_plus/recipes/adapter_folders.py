"""Adapters where a model is expected: what a folder with `adapter_config.json` is, and how to train on from it."""

import json
from pathlib import Path

CONFIG, RECIPE = "adapter_config.json", "recipe.resolved.yaml"


def adapter_instead_of_model(name: str) -> str | None:
    """One sentence with the fix if a local folder holds an adapter and no model; None for anything else.

    transformers would load its base with the adapter frozen inside, and train every weight but the adapter's.
    """
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        return None
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    merged = f"{name.rstrip('/')}-merged"
    ours = any((place / RECIPE).is_file() for place in (folder, folder.absolute().parent))
    command = (
        f"`trl-plus merge {name} {merged}`"
        if ours
        else f"`python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{name}')"
        f".merge_and_unload().save_pretrained('{merged}')\"` and the base's tokenizer beside it"
    )
    return (
        f"{name} is an adapter of {base or 'another model'}, not a model. Fix: merge it with {command}, and train "
        f"`model_name_or_path: {merged}`, which is then also the reference. From Python, a PeftModel that was loaded "
        "with `is_trainable=True` trains on, with the adapter as given for its reference."
    )
