"""A tiny random chat model, its tokenizer, and preference rows of ragged lengths, made in seconds without a hub."""

import atexit
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# Other processes may use the cores at the same time, so no example is too slow
settings.register_profile("trl_plus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trl_plus")

# A cache of this session's own: what an earlier one kept there would be read instead of computed
_CACHE = tempfile.mkdtemp(prefix="trl_plus_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for each other's threads
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

WORDS = (  # noqa: SIM905
    "anchor basil cedar dune elm fern garnet heath indigo jasper kite larch meadow nickel olive pebble quill reed "
    "sage thistle upland violet wren yew zinc"
).split()
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _text(rng, low, high):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def make_pairs(n, seed=0):
    """n conversational pairs with prompts of their own."""
    rng = random.Random(seed)
    return [
        {
            "prompt": [user(f"{i} {_text(rng, 2, 9)}?")],
            "chosen": [assistant(_text(rng, 2, 12))],
            "rejected": [assistant(_text(rng, 1, 15))],
        }
        for i in range(n)
    ]


def make_unpaired(n, seed=0):
    """n conversational rows, every second one desirable, two rows to a prompt."""
    pairs = make_pairs((n + 1) // 2, seed)
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    return rows[:n]


def build_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [m["content"] for row in make_pairs(200, 7) for m in (*row["prompt"], *row["chosen"], *row["rejected"])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def build_model(tokenizer, seed=0):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    # the log-ratios of freshly initialised models are all alike; larger weights make the rows differ
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tokenizer):
    """Path of a folder with the tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory, tokenizer):
    """Path of a second model: a reference that differs from the policy, so that no log-ratio is zero."""
    folder = tmp_path_factory.mktemp("tiny") / "other"
    build_model(tokenizer, seed=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pair_rows():
    return make_pairs


@pytest.fixture(scope="session")
def unpaired_rows():
    return make_unpaired


@pytest.fixture(scope="session")
def build_tiny_model(tokenizer):
    """build_tiny_model(seed) -> a model that exists in memory only."""
    return lambda seed: build_model(tokenizer, seed)


def cpu_time_of_children() -> float:
    """CPU seconds of the processes that this one has waited for: other programs on the machine do not lengthen it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def starts_of():
    """starts_of(code) -> CPU time of a Python process that runs the code, in starts of a bare interpreter.

    Each is the best of three, measured in turn, and the code must exit with 0. `starts_of(seconds=s)` converts CPU
    seconds of this process.
    """

    def cpu_time(code):
        start = cpu_time_of_children()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return cpu_time_of_children() - start

    def measure(code="pass", seconds=None):
        bare, took = zip(*((cpu_time("pass"), seconds or cpu_time(code)) for _ in range(3)), strict=True)
        return min(took) / min(bare)

    return measure


class Quickstart(NamedTuple):
    """The quickstart as a user runs it: the run's folder, everything printed, CPU time, the command's words."""

    folder: Path
    output: str
    seconds: float
    words: list[str]


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """Trained once, since it takes half a minute. Tests must leave the folder as it is.

    The processes of pytest-xdist share the one that the first of them trains; each has a copy.
    """
    words = ["train", "recipes/quickstart.yaml"]
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.mktemp("quickstart")
    trained, note = shared / "quickstart-trained", shared / "quickstart.json"
    with FileLock(shared / "quickstart.lock"):
        if not note.exists():
            shutil.rmtree(trained, ignore_errors=True)  # of a process that failed here
            trained.mkdir()
            command = [sys.executable, "-m", "trl_plus.cli", *words]
            start = cpu_time_of_children()
            done = subprocess.run(command, cwd=trained, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            note.write_text(json.dumps([done.stdout + done.stderr, cpu_time_of_children() - start]), encoding="utf-8")
    output, seconds = json.loads(note.read_text(encoding="utf-8"))
    work = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(trained, work, dirs_exist_ok=True)
    return Quickstart(work / "runs" / "quickstart", output, seconds, words)


@pytest.fixture(scope="session")
def train_tiny(tmp_path_factory, tiny_model_dir):
    """train_tiny(method, train rows, held-out rows, **keys) -> output folder of two steps, run in this process."""
    from trl_plus.recipes.recipe import load_recipe
    from trl_plus.training.run import run

    def _train(method, train, held_out, **keys):
        work = tmp_path_factory.mktemp(method)
        for split, part in (("train", train), ("test", held_out)):
            (work / f"rows_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        values = {
            "method": method,
            "model_name_or_path": tiny_model_dir,
            "dataset_name": str(work / "rows"),
            "output_dir": str(work / "out"),
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "use_peft": True,
            "lora_r": 4,
            "gradient_checkpointing": False,
            "report_generations": 0,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **keys,
        }
        path = work / "r.yaml"
        path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items() if v is not None))
        run(load_recipe(str(path)), None, lambda what: None)
        return work / "out"

    return _train


@pytest.fixture(scope="session")
def simpo_run(train_tiny):
    """A SimPO run of two steps with LoRA and two checkpoints, whose held-out rows have a column `source`."""
    held_out = [{**row, "source": "abc"[i % 3]} for i, row in enumerate(make_pairs(30, 5))]
    return train_tiny("simpo", make_pairs(8), held_out, save_strategy="steps", save_steps=1)
