"""Builds all of ``trl_plus/quickstart``: a tiny chat model and preference data, made from templates and code alone.

    python scripts/build_quickstart.py [--out DIR] [--steps N] [--data-only]

Takes five to ten minutes on two CPU cores, nearly all of it the model's training; the data take seconds. No
network, no dates, fixed seeds: the data are the same bytes on any machine, the weights on machines that add floats in
the same order (same torch, same kind of CPU, two threads).

It writes ``model/`` (a transformers folder), ``pairs_train.jsonl`` and ``pairs_test.jsonl`` (prompt, chosen, rejected,
kind), ``unpaired_train.jsonl`` and ``unpaired_test.jsonl`` (the same answers one by one with a label, for KTO) and
``README.md``. The words are in ``quickstart_words.py``, the sentences in ``quickstart_text.py``, the model in
``quickstart_model.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

from quickstart_text import KINDS, make_row

SEED = 20
ROWS = {"train": 720, "test": 160}
README = """\
# Quickstart assets

- What: a chat model of 2.0 M parameters (`model/`, Llama architecture, weights stored in float16, loaded as float32),
  720 training and 160 held-out preference pairs, and the same answers unpaired with labels for KTO.
- How: `python scripts/build_quickstart.py` writes all of it from word lists and sentence templates, fixed seeds.
- Kinds: politeness (a kind or a grumpy answer), format (a list or a sentence, capitals or small letters, JSON or words,
  a last word, yes or no), arithmetic (an equation or a sentence), brevity (short or long). The prompt asks for one of
  the two. Each is chosen as often as it is rejected, so the surface of the answers does not give the preference away.
- The model first learned to answer as asked, then to give either answer, so before alignment about half of its sampled
  answers (44%) are of the rejected kind.
- Can: answer in sentences to new combinations of the names, things and numbers (up to 12) in the templates.
- Cannot: anything else. It knows no other words, and 25 of its 40 greedy sums on held-out numbers are wrong.
- Licence: Apache-2.0, text and weights are this project's own.
"""


def pairs(split: str) -> list[dict]:
    """Distinct questions of a split, the kinds equally often and in mixed order."""
    rng = random.Random(f"{SEED} pairs {split}")
    rows: dict[str, dict] = {}
    for kind in KINDS:
        wanted = len(rows) + ROWS[split] // len(KINDS)
        while len(rows) < wanted:
            row = make_row(rng, kind, split)
            rows.setdefault(row["prompt"][-1]["content"], row)
    mixed = list(rows.values())
    rng.shuffle(mixed)
    return mixed


def unpaired(rows: list[dict], split: str) -> list[dict]:
    """Every answer on its own with its label, shuffled until no prompt is next to itself."""
    single = [
        {"prompt": row["prompt"], "completion": row[style], "label": style == "chosen", "kind": row["kind"]}
        for row in rows
        for style in ("chosen", "rejected")
    ]
    rng = random.Random(f"{SEED} unpaired {split}")
    rng.shuffle(single)
    for i in range(1, len(single)):
        # A clash is cured by swapping with a random row; the swap is undone where it would make a new clash.
        while single[i]["prompt"] == single[i - 1]["prompt"]:
            j = rng.randrange(len(single))
            single[i], single[j] = single[j], single[i]
            if any(single[k]["prompt"] == single[k - 1]["prompt"] for k in (j, j + 1) if 0 < k < len(single)):
                single[i], single[j] = single[j], single[i]
    return single


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """One JSON object a line, keys in the order of the columns."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def build_data(out: Path) -> None:
    """The four JSON Lines files. Raises if a prompt of the test split were also one to train on."""
    train, test = pairs("train"), pairs("test")
    if {row["prompt"][-1]["content"] for row in train} & {row["prompt"][-1]["content"] for row in test}:
        raise RuntimeError("train and test share a prompt")
    for split, rows in (("train", train), ("test", test)):
        write_jsonl(out / f"pairs_{split}.jsonl", rows)
        write_jsonl(out / f"unpaired_{split}.jsonl", unpaired(rows, split))


def build_model(out: Path, steps: int) -> None:
    """The ``model/`` folder, from nothing."""
    import torch
    from quickstart_model import fine_tune, new_model, save, train_tokenizer

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(SEED)
    model = new_model(tokenizer, SEED)
    print(f"{len(tokenizer)} tokens, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    fine_tune(model, tokenizer, SEED, steps)
    shutil.rmtree(out / "model", ignore_errors=True)
    save(model, tokenizer, out / "model")


def main() -> None:
    """Parses the command line and writes the folder."""
    package = Path(__file__).resolve().parent.parent / "trl_plus" / "quickstart"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=package, help="folder to write (default: the package's own)")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of the model (fewer: a rougher model)")
    parser.add_argument("--data-only", action="store_true", help="write the data and leave the model as it is")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    build_data(options.out)
    (options.out / "README.md").write_text(README, encoding="utf-8")
    if not options.data_only:
        build_model(options.out, options.steps)


if __name__ == "__main__":
    main()
