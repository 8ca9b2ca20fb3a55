"""Rows, random models and trainers of both sides, for the benchmarks."""

import argparse
import json
import random
import tempfile
from pathlib import Path


def load_pairs(options: argparse.Namespace) -> list[dict]:
    """Pairs whose prompt leaves room for a completion: some trainers drop the others, which would shift the rows."""
    if options.data == "random":
        return random_pairs(options)
    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    fits = [row for row in rows if words(row["prompt"]) + 3 * len(row["prompt"]) + 8 < options.max_length]
    return [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in fits[: options.rows]]


def random_pairs(options: argparse.Namespace) -> list[dict]:
    """Pairs of `length` words on either side, of which the prompt has `share`: nothing is padded in any layout."""
    rng = random.Random(0)
    prompt = int(options.length * options.share)

    def turn(role: str, count: int) -> list[dict]:
        return [{"role": role, "content": " ".join(f"w{rng.randrange(2000)}" for _ in range(count))}]

    return [
        {"prompt": turn("user", prompt)}
        | {s: turn("assistant", options.length - prompt) for s in ("chosen", "rejected")}
        for _ in range(options.rows)
    ]


def words(messages: list[dict]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def unpaired(rows: list[dict]) -> list[dict]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


def build_model(options: argparse.Namespace, rows: list[dict]):
    """A random Qwen2 and a tokenizer that knows the words of the rows, the rest of its vocabulary unused."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    texts = (m["content"] for row in rows for side in ("prompt", "chosen", "rejected") for m in row[side])
    words = dict.fromkeys(word for text in texts for word in text.split())
    names = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "system", *words]
    names = list(dict.fromkeys(names))[: options.vocab]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
    )
    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    config = Qwen2Config(
        vocab_size=options.vocab, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config), fast


SIMPO = {"loss_type": "simpo", "cpo_alpha": 0.0}


def classes(method: str, side: str):
    """Trainer, configuration and the settings that make the peer's trainer the same method."""
    if side != "trl":
        import trl_plus as module
    elif method in ("SimPO", "CPO"):
        from trl.experimental import cpo

        config = {"beta": 2.0, "simpo_gamma": 1.0}
        return cpo.CPOTrainer, cpo.CPOConfig, config | SIMPO if method == "SimPO" else config
    elif method == "ORPO":
        from trl.experimental import orpo as module
    else:
        import trl as module
    return getattr(module, f"{method}Trainer"), getattr(module, f"{method}Config"), {}


def make_trainer(options: argparse.Namespace, rows: list[dict]):
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig

    disable_progress_bars()
    method, side = options.method, options.side
    trainer_class, config_class, config = classes(method, side)
    if side == "ours":
        config = {"layout": options.layout} | ({"tokens_per_device": options.tokens} if options.tokens else {})
    elif side == "rows":
        config = {"layout": "rows"}
    model, tokenizer = build_model(options, rows)
    args = config_class(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.batch[0],
        gradient_accumulation_steps=options.accumulation, max_length=options.max_length, bf16=options.bf16,
        gradient_checkpointing=options.checkpointing, report_to=[], disable_tqdm=True, logging_steps=1000, **config,
    )  # fmt: skip
    extra = {}
    if options.lora:
        extra["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    elif method in ("DPO", "KTO"):
        extra["ref_model"] = build_model(options, rows)[0]
    trainer = trainer_class(
        model=model, args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list(unpaired(rows) if method == "KTO" else rows), **extra,
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.optimizer.step()  # the state that Adam keeps stands before the first step
    trainer.current_gradient_accumulation_steps = options.accumulation
    torch.manual_seed(0)
    return trainer
