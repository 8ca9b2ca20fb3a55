"""SIGKILL at random moments and in the middle of saves: resumed each time, the run ends with the very same weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "kill_driver.py"
METHODS = ("dpo", "simpo", "cpo", "orpo", "kto")
CUTS = ((4, 1), (2, 2), (1, 4), (3, 1), (2, 1))
TIMES = ("runtime", "per_second", "train_loss", "total_flos")


@pytest.fixture
def killed(tmp_path, tiny_model_dir, pair_rows, unpaired_rows):
    """killed("kto", lora, cut, kills, seed) -> (what the driver found, the folder of recipes and runs)."""

    def _killed(method, lora, cut, kills, seed):
        model = tmp_path / "model"
        shutil.copytree(tiny_model_dir, model)
        config = json.loads((model / "config.json").read_text())
        # dropout, so that every random number of the run matters
        (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
        rows = unpaired_rows(22, 1) if method == "kto" else pair_rows(22, 1)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys = {
            "method": method, "model_name_or_path": str(model), "dataset_name": str(tmp_path / "rows.jsonl"),
            "learning_rate": 0.01, "per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1],
            "max_steps": 14, "gradient_checkpointing": False, "logging_steps": 3, "save_steps": 2,
            "save_total_limit": 2, "disable_tqdm": True, "use_cpu": True, "report_generations": 0, "bf16": False,
            "optim": "adamw_torch", "disable_dropout": False,
        }  # fmt: skip
        keys |= {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1} if lora else {}
        for name, out in (("r", "out"), ("r.whole.yaml", "out-whole")):
            text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in (keys | {"output_dir": out}).items())
            (tmp_path / name).write_text(text)
        (tmp_path / "r").rename(tmp_path / "r.yaml")
        shutil.move(tmp_path / "r.whole.yaml", tmp_path / "r.yaml.whole.yaml")
        done = subprocess.run(
            [sys.executable, str(DRIVER), "r.yaml", "out", str(kills), str(seed)],
            cwd=tmp_path, capture_output=True, text=True, timeout=580,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        return json.loads(line.removeprefix("RESULT ")), done.stderr

    return _killed


def logged(folder):
    """The logged metrics by step, without clocks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)} for line in lines if "loss" in line
    ]


def check(tmp_path, result, errors, lora, kills):
    codes = [code for code, _ in result["ended"]]
    assert set(codes) <= {-9, 0}, (result["ended"], errors[-3000:])
    assert codes.count(-9) >= kills, result["ended"]
    assert result["last"] == 0, errors[-3000:]
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out-whole" / name).read_bytes()
    for mine, whole in zip(logged(tmp_path / "out"), logged(tmp_path / "out-whole"), strict=True):
        assert mine == pytest.approx(whole, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method, lora, cut", [("simpo", True, (4, 1)), ("kto", False, (2, 2))])
def test_three_kills(killed, tmp_path, method, lora, cut):
    result, errors = killed(method, lora, cut, 5, seed=1)
    check(tmp_path, result, errors, lora, 3)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_twenty_kills(killed, tmp_path, method, lora):
    cut = CUTS[(METHODS.index(method) + 2 * lora) % len(CUTS)]
    result, errors = killed(method, lora, cut, 40, seed=METHODS.index(method))
    check(tmp_path, result, errors, lora, 20)
