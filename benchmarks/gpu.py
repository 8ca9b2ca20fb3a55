"""Ours against TRL's trainer on one GPU: tokens per second, the share of the measured peak, peak memory.

    python benchmarks/gpu.py                                     # every shape, LoRA, length 1024
    python benchmarks/gpu.py --shapes 0.5B 1.5B --modes full lora qlora --lengths 1024 2048 4096

Random weights in the shapes of Qwen2.5-0.5B, 1.5B and 7B, bf16, 8-bit AdamW, gradient checkpointing; pairs of random
tokens whose prompt takes `--share` of the length. Nothing is downloaded. Each trainer runs in a process of its own, one
after the other on the same card. Needs CUDA, and bitsandbytes for the optimizer and for QLoRA.

Tokens are those of the rows, prompts of a pair twice, so that both sides are measured by the same work. The peak is
that of a bf16 matrix product on this card; a step's FLOPs are counted as `mfu` is (trl_plus/trainers/throughput.py),
over the tokens that a step needs, each prompt once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise, product

SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
KEY_HEADS = {"0.5B": 2, "1.5B": 2, "7B": 4}
MODES = ("full", "lora", "qlora")
METHODS = ("DPO", "SimPO", "ORPO", "KTO")
VOCAB = 151_936


def model_folder(shape: str) -> str:
    """A folder with a random model of this shape and a tokenizer that reads numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tempfile.mkdtemp()
    config = Qwen2Config(
        vocab_size=VOCAB, num_key_value_heads=KEY_HEADS[shape], max_position_embeddings=32768, eos_token_id=2,
        pad_token_id=0, bos_token_id=None, tie_word_embeddings=shape != "7B", **SHAPES[shape],
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        Qwen2ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    torch.cuda.empty_cache()
    words = ["<pad>", "<unk>", "<eos>", *map(str, range(1000))]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


def rows(options: argparse.Namespace):
    """Pairs of ragged lengths up to `length`, of which the prompt takes `share`."""
    import random

    from datasets import Dataset

    rng = random.Random(0)
    text = lambda n: " ".join(str(rng.randrange(1000)) for _ in range(n))  # noqa: E731
    pairs = []
    for _ in range(options.batch * options.accumulation * (options.rounds + 2)):
        whole = rng.randint(options.length // 4, options.length) - 2
        prompt = int(whole * options.share)
        pairs.append({"prompt": text(prompt), "chosen": " " + text(whole - prompt), "rejected": " " + text(whole // 2)})
    if options.method != "KTO":
        return Dataset.from_list(pairs)
    return Dataset.from_list(
        [
            {"prompt": p["prompt"], "completion": p[s], "label": s == "chosen"}
            for p in pairs
            for s in ("chosen", "rejected")
        ]
    )


def child(options: argparse.Namespace) -> None:
    """One trainer: prints one line of JSON."""
    import torch
    from peers import classes
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback

    trainer_class, config_class, config = classes(options.method, options.side)
    args = config_class(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.batch, max_length=options.length,
        gradient_accumulation_steps=options.accumulation, bf16=True, gradient_checkpointing=True,
        optim="adamw_bnb_8bit",
        max_steps=options.rounds + 2, report_to=[], save_strategy="no", logging_steps=10_000, disable_tqdm=True,
        **config,
    )  # fmt: skip
    folder = model_folder(options.shape)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    extra = {}
    if options.mode != "full":
        extra["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if options.mode == "qlora" and "experimental" in trainer_class.__module__:
        args.model_init_kwargs = {"quantization_config": nf4}
    elif options.mode == "qlora":
        extra["quantization_config"] = nf4
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer = trainer_class(
        model=folder, args=args, train_dataset=rows(options), processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()], **extra,
    )  # fmt: skip
    trainer.train()
    seconds = statistics.median(b - a for a, b in pairwise(times[1:]))
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"seconds": seconds, "memory": memory, "device": torch.cuda.get_device_name()}))


def needed(options: argparse.Namespace) -> tuple[float, float]:
    """Tokens per step of the rows as they are, and with each prompt once."""
    data = rows(options)
    prompt = [len(text.split()) for text in data["prompt"]]
    sides = [[len(t.split()) for t in data[s]] for s in ("chosen", "rejected", "completion") if s in data.column_names]
    steps = len(data) / (options.batch * options.accumulation)
    completions = sum(map(sum, sides))
    return (len(sides) * sum(prompt) + completions) / steps, (sum(prompt) + completions) / steps


def run(options: argparse.Namespace, side: str, argv: list[str]) -> dict | None:
    """What one trainer measured, or None where it does not fit."""
    chosen = [f"--{name}={getattr(options, name)}" for name in ("shape", "mode", "method", "length", "batch")]
    done = subprocess.run([sys.executable, __file__, *argv, *chosen, "--side", side], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--modes", nargs="+", default=["lora"], choices=MODES)
    parser.add_argument("--methods", nargs="+", default=["DPO", "SimPO"], choices=METHODS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    for name in ("shape", "mode", "method", "side"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        child(options)
        return
    import torch

    from trl_plus.trainers.throughput import peak_flops

    if not torch.cuda.is_available():
        parser.error("no CUDA device: this benchmark has nothing to measure here.")
    peak = peak_flops(torch.device("cuda"), torch.bfloat16)
    print(
        f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}, measured peak {peak / 1e12:.0f} TFLOP/s in bf16"
    )
    print("| shape | mode | length | method | side | tokens/s | MFU | peak GB |\n" + "| --- " * 8 + "|")
    for shape, mode, length, method in product(options.shapes, options.modes, options.lengths, options.methods):
        case = argparse.Namespace(**vars(options) | {"shape": shape, "mode": mode, "length": length, "method": method})
        for side in ("ours", "trl"):
            print(table_line(case, side, run(case, side, sys.argv[1:]), peak), flush=True)


def table_line(options: argparse.Namespace, side: str, measured: dict | None, peak: float) -> str:
    start = f"| {options.shape} | {options.mode} | {options.length} | {options.method} | {side} |"
    if measured is None:
        return f"{start} does not fit or fails | | |"
    tokens, once = needed(options)
    shape = SHAPES[options.shape]
    attention = 2 + 2 * KEY_HEADS[options.shape] / shape["num_attention_heads"]
    layer = shape["hidden_size"] ** 2 * attention + 3 * shape["hidden_size"] * shape["intermediate_size"]
    passes = (3 if options.mode == "full" else 2) + (options.method in ("DPO", "KTO"))
    used = 2 * layer * shape["num_hidden_layers"] * passes * once / measured["seconds"] / peak
    return f"{start} {tokens / measured['seconds']:.0f} | {used:.0%} | {measured['memory']:.1f} |"


if __name__ == "__main__":
    main()
