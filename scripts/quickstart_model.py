"""Trains the quickstart's tokenizer and its two-million-parameter chat model and writes a transformers folder."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import torch
from quickstart_text import KINDS, make_row
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 1280
CONTEXT = 512
# Shares of chosen answers: until LAST of the training it learns what is asked for, then to give either answer
AS_ASKED, EITHER, LAST = 0.95, 0.5, 0.7


def render(row: dict, style: str) -> tuple[str, str]:
    """The text of a prompt and of one of its answers, as the chat template writes them."""
    prompt = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in row["prompt"]) + f"{START}assistant\n"
    return prompt, f"{row[style][0]['content']}{END}\n"


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the same kind of text as the model's, held-out questions left out.

    Digits stay single tokens: a number is then spelled the same way everywhere, which is what sums are learned from.
    """
    rng = random.Random(seed)
    rows = [make_row(rng, kind, "train") for _ in range(4000) for kind in KINDS]
    texts = [m["content"] for row in rows for part in ("prompt", "chosen", "rejected") for m in row[part]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["system\n", "user\n", "assistant\n"] * 4000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64
    )
    return model


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, size: int):
    """Yields (input ids, weights) of fresh questions, first answered as asked, then either way.

    Rows are drawn in blocks and sorted by length, so that little is spent on padding. An answer is followed by the
    template's newline and one more end token, both trained: that is how TRL's CPO tokenization closes a completion,
    and a model that had never seen it would add the same large constant to both sides of every pair, which
    length-normalised objectives would then read as a preference for long answers.
    """
    rng, block = random.Random(seed), 16
    mix = (*KINDS, "arithmetic")  # sums take the longest to learn
    pending: list[list[tuple[list[int], int]]] = []
    for step in range(steps):
        share = AS_ASKED if step < LAST * steps else EITHER
        if not pending:
            rows = []
            for i in range(size * block):
                row = make_row(rng, mix[i % len(mix)], "train")
                prompt, answer = render(row, "chosen" if rng.random() < share else "rejected")
                rows.append((tokenizer(prompt)["input_ids"], tokenizer(answer + END)["input_ids"]))
            rows.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
            pending = [rows[i : i + size] for i in range(0, len(rows), size)]
            rng.shuffle(pending)
        rows = pending.pop()
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        weight = torch.zeros((len(rows), width))
        for i, (p, c) in enumerate(rows):
            ids[i, : len(p) + len(c)] = torch.tensor(p + c)
            # Prompt tokens count a little: predicting them teaches the words that the answers must copy.
            weight[i, : len(p)] = 0.1
            weight[i, len(p) : len(p) + len(c)] = 1.0
        yield ids, weight


def fine_tune(model: LlamaForCausalLM, tokenizer, seed: int, steps: int, size: int = 32, peak: float = 2e-3) -> None:
    """Plain supervised training with AdamW, a short warm-up and a cosine decay to nearly nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    began, recent = time.monotonic(), []
    for step, (ids, weight) in enumerate(batches(tokenizer, seed, steps, size)):
        decay = 0.51 + 0.49 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100) * decay
        # Right padding and a causal mask: no real token ever attends to a pad token, so no attention mask is needed.
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        counted = weight[:, 1:].flatten()
        loss = (losses * counted).sum() / counted.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 250 == 0:
            print(
                f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.4f}  {time.monotonic() - began:.0f} s",
                flush=True,
            )
            recent.clear()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes float16 weights under a config that says float32.

    Half the bytes on disk, but every way of loading, ``dtype="auto"`` included, trains in float32 as a CPU wants. The
    reload shows that the file holds what was trained, up to the rounding of the weights.
    """
    model.eval()
    rounded = {name: p.half().float() for name, p in model.state_dict().items()}
    model.load_state_dict(rounded)
    probe = tokenizer(f"{START}user\nWhat is 2 + 3?{END}\n{START}assistant\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=probe).logits
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(dtype="float32", _name_or_path="trl_plus/quickstart")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files that only their owner may read
    again = LlamaForCausalLM.from_pretrained(folder)
    if again.dtype != torch.float32 or not again.generation_config.eos_token_id == tokenizer.eos_token_id:
        raise RuntimeError(f"the folder loads as {again.dtype}, eos {again.generation_config.eos_token_id}")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=probe).logits, expected, rtol=1e-4, atol=1e-4)
