"""Two processes: a row at fault on one stops all, or is left out by all; a resumed run is the one it continues.

A kernel that fails in one process makes all take plain rows.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "fault_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_model_dir, other_model_dir):
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    command += [str(folder), tiny_model_dir, other_model_dir]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-9000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_processes_stop_with_the_row_of_the_one(ranks):
    first, second = (rank["stop"] for rank in ranks)
    assert first["said"] == second["said"]
    assert "Step 3: not finite: the loss of row" in first["said"]
    assert first["said"].count("sha256") == 1
    assert first["steps"] == second["steps"] == 2
    assert first["sum"] == second["sum"]
    assert math.isfinite(first["sum"])


def test_all_processes_leave_the_step_out(ranks):
    first, second = (rank["skip"] for rank in ranks)
    assert first["said"] == second["said"] == ""
    assert first["steps"] == second["steps"] == 4
    assert first["sum"] == second["sum"]
    assert math.isfinite(first["sum"])
    assert [log.get("nonfinite_skips") for log in first["logs"]] == [None, None, 1, 1]
    assert all(math.isfinite(log["loss"]) for log in first["logs"] if "loss" in log)
    assert "loss" not in first["logs"][2]


def test_train_loss_is_that_of_all_processes(ranks):
    """Whenever the last log was: transformers adds each process's own losses since then."""
    losses = [rank[f"every {steps}"]["train_loss"] for rank in ranks for steps in (1, 3, 100)]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-6)
    assert losses[0] == pytest.approx(sum(log["loss"] for log in ranks[0]["every 1"]["logs"]) / 4, rel=1e-6)


@pytest.mark.parametrize("method", ["SimPO", "KTO"])
def test_resumed_in_the_middle_of_an_epoch(method, ranks):
    """11 rows, 8 to a step: the rows that fill the last round of the epoch weigh nothing after a resume either."""
    for rank in ranks:
        whole, *others = rank[method]
        assert len(whole[1]) == 6
        assert others == [whole, whole]  # the very same weights and losses


def test_a_kernel_that_fails_later_in_one_process(ranks):
    """Neither waits for the other: they make the update of plain rows, and end on the same layout."""
    first, second = (rank["late"] for rank in ranks)
    assert len(first) == 8
    for name, found in first.items():
        assert found["distance"] < 1e-5, name
        assert found["layouts"] == second[name]["layouts"] == ["rows"] * len(found["layouts"]), name
        assert found["sum"] == second[name]["sum"], name
