"""Several CPU processes (gloo) make the weights, logs and evaluation that one process makes on the same batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker.py"
# Times, and what is not a mean over rows
SKIPPED = {"epoch", "step", "grad_norm", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
# Token means that TRL takes per micro-batch, where its own loss is used
UPSTREAM_MEANS = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
CASES = [
    {"method": "SimPO", "config": {"sft_weight": 1.0}},
    {"method": "ORPO", "weighted": True},
    {"method": "CPO", "lora": True},
    {"method": "DPO"},
    # TRL's own loss: its gathers want equal shapes, so repeated rows stay in; exact where the rows divide
    {"method": "DPO", "config": {"f_divergence_type": "js_divergence"}, "rows": 12, "eval_rows": 6},
    {"method": "KTO"},
    {"method": "KTO", "weighted": True, "lora": True},
]


def run(spec, ranks, out):
    spec = spec | {"ranks": ranks, "out": str(out)}
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run([*command, str(WORKER), json.dumps(spec)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


TWO, THREE = (2, 2, 2), (3, 1, 2)  # ranks, rows per device, accumulation
RUNS = [(case, *TWO) for case in CASES] + [(case, *THREE) for case in (CASES[0], CASES[1], CASES[5])]


@pytest.mark.parametrize(
    "case, ranks, batch, accumulation", RUNS, ids=[f"{run[1]}-{'-'.join(map(str, run[0].values()))}" for run in RUNS]
)
def test_same_as_one_process(case, ranks, batch, accumulation, tmp_path, tiny_model_dir, other_model_dir):
    """13 rows: nothing divides, so the sampler repeats rows to fill the last round; they must weigh nothing."""
    spec = (
        {"rows": 13, "eval_rows": 7}
        | case
        | {"folder": str(tmp_path), "model": tiny_model_dir, "reference": other_model_dir}
    )
    several = run(spec | {"batch": batch, "accumulation": accumulation}, ranks, tmp_path / "several.pt")
    one = run(spec | {"batch": ranks * batch * accumulation, "accumulation": 1}, 1, tmp_path / "one.pt")
    gap = sum(((one["update"][n] - several["update"][n]).double() ** 2).sum() for n in one["update"]) ** 0.5
    size = sum((one["update"][n].double() ** 2).sum() for n in one["update"]) ** 0.5
    assert size > 0
    assert gap / size < 1e-5
    assert len(one["logs"]) == len(several["logs"]) == 5
    for mine, other in zip([*one["logs"], one["evaluation"]], [*several["logs"], several["evaluation"]], strict=True):
        assert mine.keys() == other.keys()
        skipped = SKIPPED | (UPSTREAM_MEANS if "f_divergence_type" in case.get("config", {}) else set())
        for name in {name for name in mine if name.removeprefix("eval_") not in skipped} - SKIPPED:
            assert other[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
