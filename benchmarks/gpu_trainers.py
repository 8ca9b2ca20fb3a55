"""Models, rows and trainers of both sides for `benchmarks/gpu.py`, and what a trainer computed with."""

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from datasets import Dataset
from peers import classes, unpaired
from peft import LoraConfig

from trl_plus.forward.attention import interface

# hidden size, intermediate size, layers, heads, key heads
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2),
    "1.5B": (1536, 8960, 28, 12, 2),
    "7B": (3584, 18944, 28, 28, 4),
    "tiny": (64, 96, 2, 4, 2),
}


def gradient(trainer) -> tuple[float, torch.Tensor]:
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    parts = [p.grad.flatten().float().cpu() for p in trainer.model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts)


def make_trainer(method, side, shape, mode, batch, length, share, steps, dtype, device, callbacks=()):
    """A trainer of one side: "ours", "rows" (ours on plain rows) or "trl"; `mode` is "full", "lora" or "qlora"."""
    trainer_class, config_class, config = classes(method, "trl" if side == "trl" else "ours")
    model = make_model(shape, dtype, device, quantized=mode == "qlora")
    extra = {}
    if mode != "full":
        extra["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    elif method in ("DPO", "KTO"):
        extra["ref_model"] = copy.deepcopy(model)
    args = config_class(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_length=length, max_steps=steps,
        bf16=dtype == torch.bfloat16, use_cpu=device.type == "cpu", gradient_checkpointing=True, optim="adamw_torch",
        learning_rate=1e-6, report_to=[], save_strategy="no", logging_steps=10_000, disable_tqdm=True, seed=0,
        **config | ({"layout": "rows"} if side == "rows" else {}),
    )  # fmt: skip
    return trainer_class(
        model=model, args=args, train_dataset=Dataset.from_list(rows(batch * steps, length, share, method)),
        processing_class=tokenizer(), callbacks=list(callbacks), **extra,
    )  # fmt: skip


def make_model(shape: str, dtype: torch.dtype, device: torch.device, quantized: bool = False):
    """A random Qwen2 in memory."""
    from transformers import BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, few = SHAPES[shape]
    config = Qwen2Config(
        vocab_size=1100 if shape == "tiny" else 151936, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=few,
        max_position_embeddings=8192, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        tie_word_embeddings=shape != "7B",
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if not quantized:
        return model
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return Qwen2ForCausalLM.from_pretrained(
        None, config=config, state_dict=model.state_dict(), quantization_config=bits, dtype=dtype
    )


def layout_of(trainer) -> str:
    return " ".join(sorted({layout.layout for layout in getattr(trainer, "row_layouts", ())})) or "rows"


@contextmanager
def attention_seen() -> Iterator[set[str]]:
    """The names of the functions that attended to a layout."""
    seen: set[str] = set()
    before = interface.backend

    def backend(*args):
        found = before(*args)
        seen.add(f"{found.__module__.split('.')[-1]}.{found.__name__}")
        return found

    interface.backend = backend
    try:
        yield seen
    finally:
        interface.backend = before


def rows(count: int, length: int, share: float, method: str) -> list[dict]:
    """Pairs of numbers, ragged: a quarter of `length` to all of it, and rejected answers shorter."""
    rng, found = random.Random(0), []

    def text(words: int) -> str:
        return " ".join(str(rng.randrange(1000)) for _ in range(words))

    for _ in range(count if method != "KTO" else count // 2):
        words = rng.randint(length // 4, length) - 2
        prompt = int(words * share)
        rejected = max(1, (words - prompt) // 2)
        found.append({"prompt": text(prompt), "chosen": " " + text(words - prompt), "rejected": " " + text(rejected)})
    return unpaired(found) if method == "KTO" else found


def tokens(data: list[dict], method: str) -> tuple[int, int]:
    """Tokens of the rows, and tokens with a prompt counted once per pair."""

    def words(*names: str) -> int:
        return sum(len(row[name].split()) for row in data for name in names)

    if method == "KTO":
        return (words("prompt", "completion"),) * 2
    return 2 * words("prompt") + words("chosen", "rejected"), words("prompt", "chosen", "rejected")


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<eos>", *map(str, range(1000))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
