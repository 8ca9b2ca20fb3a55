"""The GPU benchmark reports what it left out. The run itself is a step of `.ci/run`."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
DONE = {"stage": "facts", "code": 0, "seconds": 3.0}
NO_TIME = {"stage": "kernels", "code": "no time left", "seconds": 0}
NO_PACKAGE = {"speed": "tiny qlora", "skipped": "bitsandbytes is not installed"}


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cells, code, code_of_tiny", [
    ([DONE], 0, 0),
    ([DONE, {"ok": None, "step": "SimPO"}], 0, 0),
    ([DONE, {"ok": False, "kernel": "dense"}], 1, 1),
    ([DONE, {"stage": "kernels", "code": "time limit"}], 1, 1),
    ([DONE, {"stage": "kernels", "code": -9}], 1, 1),
    ([DONE, NO_TIME], 0, 1),
    ([DONE, NO_PACKAGE], 0, 1),
])  # fmt: skip
def test_exit_code(gpu, cells, code, code_of_tiny):
    assert gpu.exit_code(cells, tiny=False) == code
    assert gpu.exit_code(cells, tiny=True) == code_of_tiny


@pytest.mark.parametrize("tiny", [True, False])
def test_stages_without_time_are_printed(gpu, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--seconds", "1", *["--tiny"] * tiny])
    assert gpu.main() == tiny
    printed = capsys.readouterr().out
    stages = gpu.TINY if tiny else gpu.STAGES
    assert [line for line in printed.splitlines() if line.startswith("skipped: ")] == [
        f"skipped: {name}: no time left" for name, _ in stages
    ]


def test_a_stage_that_does_not_exist(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--only", "kernals"])
    assert gpu.main() == 2
    assert "kernals" in capsys.readouterr().err
