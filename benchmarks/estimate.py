"""Peak memory as `trl-plus estimate` says it, against the peak of real optimizer steps, each in a fresh process.

    python benchmarks/estimate.py --measure-one '{...}'
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
MIB = 2**20
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "medium": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8},
}


def save_model(folder: Path, family: str, size: str, vocab: int) -> None:
    """A random model with step_time's word-level tokenizer."""
    import torch
    from step_time import build_model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    _, tokenizer = build_model({"vocab_size": 3000, **SIZES["tiny"]})
    config_class, model_class = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=vocab, num_key_value_heads=SIZES[size]["num_attention_heads"] // 2, eos_token_id=2, pad_token_id=0,
        bos_token_id=None, max_position_embeddings=2048, **SIZES[size],
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_rows(path: Path, length: int) -> None:
    """64 pairs whose sides all reach `length` tokens; a quarter of it is the prompt."""
    rng = random.Random(0)
    words = lambda n: " ".join(rng.choice(("please", "thank", "you", "the")) for _ in range(n))
    rows = [
        {
            "prompt": [{"role": "user", "content": words(length // 4)}],
            "chosen": [{"role": "assistant", "content": words(length)}],
            "rejected": [{"role": "assistant", "content": words(length)}],
        }
        for _ in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def measure(recipe: str, overrides: list[str]) -> dict[str, float]:
    """MiB of this process: before the model is built, before the steps, and the peak of three optimizer steps."""
    import gc
    import trl  # noqa: F401
    import trl_plus.trainers  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401
    from trl_plus.data.loading import load
    from trl_plus.recipes import load_recipe
    from trl_plus.recipes.loading import build_trainer, load_processor
    from trl_plus.recipes.objects import build

    objects = build(load_recipe(recipe, [*overrides, 'max_steps=3', 'save_strategy=no', 'report_to=none', 'disable_tqdm=true']))
    data, processor = load(objects.data), load_processor(objects)
    gc.collect()
    baseline = status("VmRSS")
    trainer = build_trainer(objects, data, processor, [])
    gc.collect()
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    trainer.train()
    return {"baseline": baseline, "loaded": loaded, "peak": status("VmHWM")}


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:]
    if recipe == "--make":
        save_model(Path(overrides[0]), *overrides[1:3], int(overrides[3]))
    elif recipe == "--rows":
        save_rows(Path(overrides[0]), int(overrides[1]))
    else:
        print(json.dumps(measure(recipe, overrides)))
