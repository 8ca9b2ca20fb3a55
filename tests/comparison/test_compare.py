"""`trl-plus compare` on an adapter and on a full fine-tune of the tiny model."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.comparison.answers import Sampling, answers_of

SHORT = ("--max-new-tokens", "12")


def call(*words):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


@pytest.fixture(scope="module")
def compared(runs):
    """The object that --json prints, of each run."""
    return {name: json.loads(call(folder, "-n", 6, *SHORT, "--json").stdout) for name, folder in runs.items()}


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    """The tokenizer as it comes from its folder, which is not quite the one in memory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_the_base_is_the_same_whether_an_adapter_is_switched_off_or_not_there(compared, tiny, loaded):
    base = [row["base"] for row in compared["adapter"]["answers"]]
    assert base == [row["base"] for row in compared["full"]["answers"]]
    prompts = [row["prompt"] for row in compared["adapter"]["answers"]]
    assert [row["text"] for row in base] == [a.text for a in answers_of(tiny, loaded, prompts, Sampling(12))]


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_tuned_answers_are_those_of_the_saved_weights(compared, runs, kind, loaded):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    loader = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
    rows = compared[kind]["answers"]
    wanted = answers_of(loader.from_pretrained(runs[kind]), loaded, [row["prompt"] for row in rows], Sampling(12))
    assert [row["tuned"]["text"] for row in rows] == [answer.text for answer in wanted]
    assert [row["tuned"] for row in rows] != [row["base"] for row in rows]


def test_the_object(compared, runs):
    found = compared["adapter"]
    assert found["schema_version"] == 1
    assert found["tuned"] == str(runs["adapter"])
    assert found["sampling"] == {"max_new_tokens": 12, "temperature": 0.0, "seed": 0, "batch_size": 16}
    for model in ("base", "tuned"):
        lengths = [row[model]["tokens"] for row in found["answers"]]
        assert found["statistics"][model]["mean_tokens"] == pytest.approx(sum(lengths) / 6)
        assert found["statistics"][model]["hit_limit"] == sum(row[model]["hit_limit"] for row in found["answers"])
    assert found["identical"] == sum(row["base"]["text"] == row["tuned"]["text"] for row in found["answers"])


def test_all_faces(runs, tmp_path):
    page, sheet = tmp_path / "c.html", tmp_path / "ab.jsonl"
    (tmp_path / "p.txt").write_text("anchor basil?\ncedar dune?\n")
    words = ("--prompts", tmp_path / "p.txt", "--html", page, "--blind", sheet, "--temperature", 0.9)
    result = call(runs["adapter"], *words, "--seed", 3, *SHORT)
    assert result.exit_code == 0, result.output
    for text in ("2 prompts, sampled at temperature 0.9 with seed 3", "tokens per answer", "through the chat template"):
        assert text in " ".join(result.output.split())
    assert page.read_text().count('<article class="sample"') == 2
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert rows[0]["prompt"] == "user: anchor basil?"
    assert call("--score", sheet).exit_code == 2
    sheet.write_text("".join(json.dumps({**row, "winner": "tie"}) + "\n" for row in rows))
    assert "Win rate 0.500" in call("--score", sheet).output
    score = json.loads(call("--score", sheet, "--json").stdout)
    assert (score["rows"], score["win_rate"]["value"]) == (2, 0.5)


def test_texts_as_they_are(runs, tmp_path):
    (tmp_path / "p.txt").write_text("anchor basil\n")
    rows = [
        json.loads(call(runs["adapter"], "--prompts", tmp_path / "p.txt", *SHORT, "--json", *raw).stdout)["answers"]
        for raw in ((), ("--raw",))
    ]
    assert [row[0]["prompt"] for row in rows] == [[{"role": "user", "content": "anchor basil"}], "anchor basil"]
    assert rows[0][0]["base"] != rows[1][0]["base"]


def test_long_prompts_are_shortened_in_the_terminal_and_nowhere_else(runs, tmp_path):
    (tmp_path / "p.txt").write_text("basil " * 100 + "and now?\n")
    result = call(runs["adapter"], "--prompts", tmp_path / "p.txt", *SHORT, "--html", tmp_path / "c.html")
    assert "(314 characters)" in " ".join(result.output.replace("│", " ").split())
    assert result.output.count("basil") < 60
    assert "basil " * 100 + "and now?" in (tmp_path / "c.html").read_text()


def test_usage_errors(runs, tmp_path):
    full = runs["full"]
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(full / "recipe.resolved.yaml", bare)
    (tmp_path / "ab.jsonl").write_text("")
    (tmp_path / "prompts.csv").write_text("prompt\nanchor\n")
    for words, cure in {
        (): "name the output folder of a run",
        (empty,): "name the `output_dir` of a run",
        (bare,): "holds no trained weights",
        (full, "--prompts", tmp_path / "none.txt"): "cannot be read",
        (full, "max_eval_rows=0"): "max_eval_rows is 0: name a file with --prompts",
        (full, "--html", tmp_path): "is a folder: name a file in it",
        (full, "--blind", tmp_path / "ab.jsonl" / "x.jsonl"): "cannot be written",
        (full, "--prompts", tmp_path / "prompts.csv"): "is neither text nor JSON lines",
        (full, "model_name_or_path=gone/model"): "name its folder with model_name_or_path=PATH",
        (full, "dataset_name=./none"): "Or name a file with --prompts",
        (full, "--score", tmp_path / "ab.jsonl"): "leave them out",
        (full, "--blind", tmp_path / "ab.jsonl"): "exists, and may be filled already",
        (full, "--temperature", "-1"): "temperature",
        (full, "learning_rat=1"): "learning_rate",
    }.items():
        result = call(*words, *(SHORT if words and words[0] == full else ()))
        assert result.exit_code == 2, (words, result.output)
        assert cure in " ".join(result.output.replace("│", " ").split()), words
        assert "Traceback" not in result.output


def test_the_data_of_a_run_need_not_be_there_for_prompts_of_a_file(runs, tmp_path):
    (tmp_path / "p.txt").write_text("anchor basil?\n")
    words = ("dataset_name=./none", "--prompts", tmp_path / "p.txt", *SHORT)
    result = call(runs["adapter"], *words)
    assert result.exit_code == 0, result.output
    assert "1 prompt, greedy" in result.output


def test_a_want_of_memory_names_what_takes_less(runs, monkeypatch):
    from trl_plus.comparison import run

    def full(*args):
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(run, "answers_of", full)
    result = call(runs["adapter"], "--batch-size", 7)
    assert result.exit_code == 1
    assert "lower --batch-size (now 7)" in result.output
    assert "per_device_train_batch_size" not in result.output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_four_bit_base(dtype, train_tiny, pair_rows):
    """Where the processor has AVX512-bfloat16, bitsandbytes would repack the weights, and fail on these."""
    keys = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "dtype": dtype}
    run = train_tiny("simpo", pair_rows(8), pair_rows(6, 2), **keys)
    result = call(run, "-n", 3, *SHORT, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["answers"]
    assert [row["base"]["text"] for row in rows] != [row["tuned"]["text"] for row in rows]
