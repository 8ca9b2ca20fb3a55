"""Peak memory as `trl-plus estimate` says it, against the peak of real optimizer steps, each in a fresh process.

    python benchmarks/estimate.py                                  # random models and the quickstart's, on CPU
    python benchmarks/estimate.py --model ../smollm2 --only real   # a real model besides
    python benchmarks/estimate.py --layout rows                    # more cases with plain rows
    python benchmarks/estimate.py --plain-malloc                   # what glibc's allocator holds back included

The measured figure is the largest resident set during two steps of `trainer.train()`, less the resident set before
the model was built (Python, torch and the other libraries, printed below the table). Weights are first copied out of
the mapped file, whose pages would count as well. Unless `--plain-malloc` is given, glibc is told to hand freed memory
back (MALLOC_MMAP_THRESHOLD_), so that the resident set is what is in use.
"""

import argparse
import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
MIB = 2**20
TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "medium": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8},
}
LORA = "use_peft=true lora_target_modules=all-linear"
QLORA = f"{LORA} load_in_4bit=true bnb_4bit_quant_type=nf4 use_bnb_nested_quant=true"
CKPT = "gradient_checkpointing=true"
# kind, model, method, length, micro-batch, further overrides
CASES = [
    ("random", "quickstart", "simpo", 128, 8, ""),
    ("random", "quickstart", "kto", 128, 8, ""),
    ("random", "qwen2-tiny-32k", "dpo", 128, 8, ""),
    ("random", "qwen2-tiny-32k", "dpo", 1024, 4, CKPT),
    ("random", "qwen2-medium-32k", "simpo", 512, 4, ""),
    ("random", "qwen2-medium-32k", "dpo", 128, 8, ""),
    ("random", "qwen2-medium-32k", "kto", 128, 8, ""),
    ("random", "qwen2-medium-32k", "simpo", -512, 4, ""),
    ("random", "qwen2-medium-32k", "simpo", 512, 8, "tokens_per_device=2000"),
    ("real", "real", "simpo", 128, 4, LORA),
    ("real", "real", "dpo", 128, 4, LORA),
    ("real", "real", "kto", 128, 4, ""),
    ("random", "qwen2-medium-32k", "simpo", 512, 4, CKPT),
    ("random", "qwen2-medium-32k", "dpo", 512, 4, QLORA),
    ("random", "llama-medium-150k", "orpo", 128, 4, ""),
    ("random", "qwen2-medium-32k", "simpo", 512, 4, "layout=shared"),
]
# with `layout: rows`
ROWS_CASES = [
    ("random", "quickstart", "simpo", 128, 8, ""),
    ("random", "quickstart", "kto", 128, 8, LORA),
    ("random", "qwen2-tiny-32k", "simpo", 128, 4, ""),
    ("random", "qwen2-tiny-32k", "dpo", 1024, 1, CKPT),
    ("random", "qwen2-medium-32k", "dpo", 128, 8, ""),
    ("random", "qwen2-medium-32k", "dpo", 128, 4, LORA),
    ("random", "qwen2-medium-32k", "simpo", 128, 4, QLORA),
    ("random", "qwen2-medium-32k", "orpo", 512, 1, f"{LORA} {CKPT}"),
    ("random", "llama-medium-150k", "orpo", 128, 4, ""),
    ("random", "llama-medium-150k", "kto", 128, 4, ""),
    ("real", "real", "dpo", 128, 1, QLORA),
    ("real", "real", "simpo", 128, 1, ""),
    ("real", "real", "kto", 128, 4, f"{LORA} {CKPT}"),
    ("real", "real", "orpo", 512, 1, CKPT),
    ("random", "qwen2-medium-32k", "simpo", 512, 4, CKPT),
    ("random", "qwen2-medium-32k", "simpo", -512, 4, ""),
    ("random", "qwen2-medium-32k", "simpo", 512, 1, "gradient_accumulation_steps=2"),
    ("random", "qwen2-medium-32k", "kto", 512, 4, f"{QLORA} {CKPT}"),
    ("random", "llama-medium-150k", "simpo", 512, 1, f"{LORA} {CKPT}"),
    ("random", "qwen2-medium-32k", "dpo", 1024, 1, ""),
    ("random", "qwen2-medium-32k", "simpo", 512, 4, ""),
    ("real", "real", "dpo", 128, 4, LORA),
    ("real", "real", "simpo", 128, 4, ""),
]


def save_model(folder: Path, name: str) -> None:
    """A random model of a family, size and vocabulary, with the quickstart's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    import trl_plus

    family, size, vocab = name.split("-")
    classes = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = classes[family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=int(vocab[:-1]) * 1000, num_key_value_heads=SIZES[size]["num_attention_heads"] // 2, eos_token_id=2,
        pad_token_id=0, bos_token_id=None, max_position_embeddings=2048, **SIZES[size],
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(trl_plus.__file__).parent / "quickstart" / "model" / file, folder)


def save_rows(path: Path, length: int, rows: int) -> None:
    """Pairs whose sides all fill `length` tokens; from an eighth of it on where the length is negative."""
    rng = random.Random(0)
    words = lambda n: " ".join(rng.choice(("please", "thank", "you", "the")) for _ in range(n))  # noqa: E731
    side = lambda: rng.randint(-length // 8, -length) if length < 0 else length  # noqa: E731
    rows = [
        {
            "prompt": [{"role": "user", "content": words(abs(length) // 6)}],
            "chosen": [{"role": "assistant", "content": words(side())}],
            "rejected": [{"role": "assistant", "content": words(side())}],
        }
        for _ in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def status(name: str) -> float:
    """A figure of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measure(recipe: str, overrides: list[str]) -> dict[str, float]:
    """MiB of this process: before the model is built, and the peak of two optimizer steps."""
    import trl_plus.trainers  # noqa: F401
    from trl_plus.data.loading import load
    from trl_plus.recipes.recipe import load_recipe
    from trl_plus.setup.objects import build
    from trl_plus.setup.trainer import build_trainer, load_processor

    objects = build(load_recipe(recipe, [*overrides, "max_steps=2", "disable_tqdm=true"]))
    data, processor = load(objects.data), load_processor(objects)
    gc.collect()
    baseline = status("VmRSS")
    trainer = build_trainer(objects, data, processor, [])
    for model in filter(None, (trainer.model, trainer.ref_model)):
        for parameter in model.parameters():
            if not hasattr(parameter, "quant_state"):
                parameter.data = parameter.data.clone()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    trainer.train()
    return {"baseline": baseline, "peak": status("VmHWM")}


def measured(recipe: Path, overrides: list[str], plain: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(recipe), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if plain else TIGHT)}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(out.strip().splitlines()[-1])


def write_recipe(folder: Path, model: Path, case: tuple, layout: str) -> Path:
    _, _, method, length, batch, _ = case
    rows = folder / f"rows{length}.jsonl"
    if not rows.exists():  # rows of ragged length all meet in one micro-batch, the only one there is
        save_rows(rows, length, batch if length < 0 else 64)
    values = {
        "method": method, "model_name_or_path": str(model), "dataset_name": str(rows), "max_length": abs(length),
        "output_dir": str(folder / "out"), "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1,
        "layout": layout,
        "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a real model, for the cases named `real`")
    parser.add_argument("--only", choices=("random", "real"))
    parser.add_argument("--layout", choices=("auto", "rows"), default="auto")
    parser.add_argument("--cases", type=lambda text: [int(i) for i in text.split(",")], help="numbers, from 0")
    parser.add_argument("--plain-malloc", action="store_true")
    options = parser.parse_args()
    import trl_plus
    from trl_plus.estimate.measure import PROCESS
    from trl_plus.estimate.run import estimate
    from trl_plus.recipes.recipe import load_recipe

    baselines = []
    print("| model | method | length | micro-batch | with | tokens | measured, MiB | estimated, MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases = CASES if options.layout == "auto" else ROWS_CASES
        for case in cases if options.cases is None else [cases[i] for i in options.cases]:
            kind, name, method, length, batch, overrides = case
            if options.only not in (None, kind) or (kind == "real" and options.model is None):
                continue
            model = {"real": options.model, "quickstart": Path(trl_plus.__file__).parent / "quickstart" / "model"}.get(
                name
            ) or folder / name
            if not model.exists():
                save_model(model, name)
            recipe = write_recipe(folder, model, case, options.layout)
            real = measured(recipe, overrides.split(), options.plain_malloc)
            said = estimate(load_recipe(str(recipe), overrides.split()), device="cpu")
            mine, theirs = (said.peak - said.components[PROCESS]) / MIB, real["peak"] - real["baseline"]
            baselines.append(real["baseline"])
            span = f"{length}" if length > 0 else f"up to {-length}"
            words = [part.split("=")[0] if part.endswith("=true") else part for part in overrides.split()]
            cells = [name, method, span, batch, ", ".join(words) or "-", said.shape.computed]
            print(f"| {' | '.join(map(str, cells))} | {theirs:.0f} | {mine:.0f} | {mine / theirs:.2f} |", flush=True)
    print(f"\nBefore the model was built: {statistics.median(baselines):.0f} MiB (median).")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3:])))
    else:
        main()
