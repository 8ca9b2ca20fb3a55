"""evaluate, compare, report and merge after a run of a real 135M chat model on real preference pairs.

    TRL_PLUS_REAL_DATA=../shared/data TRL_PLUS_REAL_MODEL=/path/to/SmolLM2-135M-Instruct pytest -m real

What the commands say is computed again here with transformers and PEFT alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(os.environ.get("TRL_PLUS_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
MODEL = os.environ.get("TRL_PLUS_REAL_MODEL")
ROWS = 12  # held out
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data: TRL_PLUS_REAL_DATA or {DATA}"),
    pytest.mark.skipif(MODEL is None, reason="no real model: TRL_PLUS_REAL_MODEL names no folder"),
]


def call(*words):
    command = [sys.executable, "-m", "trl_plus.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Short pairs of LLMBar: 24 to train on, ROWS held out."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = map(json.loads, (DATA / "llmbar.jsonl").read_text().splitlines())
    short = [row for row in rows if len(json.dumps(row)) < 600][: 24 + ROWS]
    for split, part in (("train", short[ROWS:]), ("test", short[:ROWS])):
        text = "".join(json.dumps({k: row[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for row in part)
        (folder / f"pairs_{split}.jsonl").write_text(text)
    return folder / "pairs"


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """DPO, four steps; preflight looks first, as for every user."""
    folder = tmp_path_factory.mktemp("run") / "dpo"
    keys = {
        "model_name_or_path": MODEL, "dataset_name": files, "output_dir": folder, "max_steps": 4, "max_length": 160,
        "dtype": "float32", "bf16": "false", "gradient_checkpointing": "false", "learning_rate": 2e-4,
        "warmup_steps": 0, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 4, "eval_steps": 2, "save_steps": 2,
        "logging_steps": 1, "report_generations": 1,
    }  # fmt: skip
    call("train", "dpo_lora", *(f"{key}={value}" for key, value in keys.items()))
    return folder


def adapted(run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), run).eval()


def tokens(tokenizer, prompt, answer):
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    assert whole[: len(asked)] == asked
    return asked, whole[len(asked) :]


def log_probability(model, asked, answer):
    with torch.no_grad():
        logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()


def test_evaluate(run, files):
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer

    found = json.loads(call("evaluate", run, "--json"))
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), adapted(run)
    rows = map(json.loads, Path(f"{files}_test.jsonl").read_text().splitlines())
    sides = [[tokens(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in rows]
    sides = [pair for pair in sides if all(len(asked) + len(answer) <= 160 for asked, answer in pair)]
    assert found["rows"] == len(sides) > ROWS // 2
    tuned = np.array([[log_probability(model, *side) for side in pair] for pair in sides])
    with model.disable_adapter():
        base = np.array([[log_probability(model, *side) for side in pair] for pair in sides])
    lengths = np.array([[len(answer) for _, answer in pair] for pair in sides])

    margin = 0.1 * ((tuned - base)[:, 0] - (tuned - base)[:, 1])  # beta of dpo_lora
    reward = found["pairs"]["models"]["tuned"]["reward"]
    assert reward["margin"]["value"] == pytest.approx(margin.mean(), abs=1e-5)
    assert reward["accuracy"]["value"] == pytest.approx((margin > 0).mean())
    for name, scores in (("base", base), ("tuned", tuned)):
        per_token = (scores / lengths)[:, 0] - (scores / lengths)[:, 1]
        shown = found["pairs"]["models"][name]["logp_per_token"]
        assert shown["margin"]["value"] == pytest.approx(per_token.mean(), abs=1e-5)
        assert shown["accuracy"]["value"] == pytest.approx((per_token > 0).mean())
        rho = spearmanr(per_token, lengths[:, 0] - lengths[:, 1]).statistic
        assert found["lengths"]["correlation"][name]["logp_per_token"]["value"] == pytest.approx(rho, abs=1e-6)
    assert found["divergence"]["all"]["value"] == pytest.approx((tuned - base).sum() / lengths.sum(), abs=1e-5)


def test_evaluate_an_adapter_and_a_model_folder_alike(run, tmp_path):
    """A run's own adapter, named as any other, and the model that it merges into, with what lies beside its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    call("merge", run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer, base = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "merged", MODEL))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three colours."}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        got, want = (model(torch.tensor([ids])).logits for model in (merged, adapted(run)))
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert tokenizer.get_vocab() == base.get_vocab()
    assert tokenizer.chat_template == base.chat_template
    settings = [json.loads(Path(f, "generation_config.json").read_text()) for f in (tmp_path / "merged", MODEL)]
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        assert settings[0][key] == settings[1][key]

    margins = [
        json.loads(call("evaluate", run, "--json", *named))["pairs"]["models"]["tuned"]["reward"]["margin"]["value"]
        for named in ((), ("--model", run / "checkpoint-4"), ("--model", tmp_path / "merged"))
    ]
    assert margins[1] == pytest.approx(margins[0], abs=1e-6)
    assert margins[2] == pytest.approx(margins[0], abs=1e-4)


def test_compare(run, tmp_path):
    """Greedy answers are those of `generate`; a sheet that is filled by a rule gives the win rate of that rule."""
    from transformers import AutoTokenizer

    page, sheet = tmp_path / "c.html", tmp_path / "ab.jsonl"
    words = ("-n", 4, "--max-new-tokens", 16, "--html", page, "--blind", sheet, "--json")
    answers = json.loads(call("compare", run, *words))["answers"]
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), adapted(run)
    for row in answers:
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        done = model.generate(input_ids=torch.tensor([asked]), max_new_tokens=16, do_sample=False)
        assert row["tuned"]["text"] == tokenizer.decode(done[0, len(asked) :], skip_special_tokens=True).strip()
    assert page.read_text().count('<article class="sample"') == 4

    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    longer = [{**row, "winner": "a" if len(row["a"]) >= len(row["b"]) else "b"} for row in rows]
    sheet.write_text("".join(json.dumps(row) + "\n" for row in longer))
    score = json.loads(call("compare", "--score", sheet, "--json"))
    decided = [row for row in answers if row["base"]["text"] != row["tuned"]["text"]]
    assert len(decided) == len(rows)
    wins = sum(len(row["tuned"]["text"]) > len(row["base"]["text"]) for row in decided)
    ties = [row for row in decided if len(row["tuned"]["text"]) == len(row["base"]["text"])]
    low, high = wins, wins + len(ties)  # `a` of equally long ones may be either
    assert low <= score["win_rate"]["value"] * 4 - (4 - len(rows)) / 2 <= high


def test_report(run):
    call("report", run)
    page = (run / "report.html").read_text()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    after = [entry for entry in logged if "eval_rewards/margins" in entry][-1]
    for words in ("Finished.", "4 optimizer steps", "Gradient norm", f"{after['eval_rewards/margins']:.4f}"):
        assert words in page
