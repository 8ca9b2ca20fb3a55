"""Several CPU processes (gloo) make the weights, logs and evaluation that one process makes on the same batches.

Importing TRL costs more than a run, so one launch makes all runs of a number of processes, in one process group.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker.py"
# Times, and what is not a mean over rows
SKIPPED = {
    "tokens_per_second",
    "epoch",
    "step",
    "grad_norm",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
}
# Token means that TRL takes per micro-batch, where its own loss is used
UPSTREAM_MEANS = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
TRLS_OWN = {"f_divergence_type", "ld_alpha", "use_weighting"}
MIX = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}

# Every trainer, full and LoRA, with and without weights
MATRIX = {
    f"{method}{'-lora' * lora}{'-weighted' * weighted}": {"method": method, "lora": lora, "weighted": weighted}
    for method in ("DPO", "SimPO", "CPO", "ORPO", "KTO")
    for lora in (False, True)
    for weighted in (False, True)
}
OPTIONS = {
    "SimPO-sft": {"method": "SimPO", "config": {"sft_weight": 1.0}},
    "DPO-mix": {"method": "DPO", "config": MIX},
    # TRL's own loss, a mean over rows that knows no weights
    "DPO-precomputed": {"method": "DPO", "config": {"precompute_ref_log_probs": True}},
    "DPO-f_divergence": {"method": "DPO", "config": {"f_divergence_type": "js_divergence"}},
    "DPO-ld_alpha": {"method": "DPO", "config": {"ld_alpha": 0.5}},
    "KTO-one_label": {"method": "KTO", "one_undesirable": True},
    "DPO-use_weighting": {"method": "DPO", "config": {"use_weighting": True}},
}
# Against plain rows in one process; rows differ in length, so processes need different numbers of micro-batches
TOKENS = {"config": {"tokens_per_device": 60}, "alone": {"layout": "rows"}}
LAYOUTS = {
    **{f"{method}-packed": {"method": method, "alone": {"layout": "rows"}} for method in ("DPO", "ORPO", "KTO")},
    **{f"{method}-tokens": {"method": method, **TOKENS} for method in ("DPO", "CPO", "KTO")},
    "DPO-tokens-f_divergence": {
        "method": "DPO",
        "config": {"tokens_per_device": 60, "f_divergence_type": "js_divergence"},
        "alone": {"layout": "rows", "f_divergence_type": "js_divergence"},
    },
}
CASES = MATRIX | OPTIONS | LAYOUTS
TWO, THREE = (2, 2, 2), (3, 1, 2)  # ranks, rows per device, accumulation
# With three processes and one row each, some have nothing but repeated rows in the last round
OF_THREE = (
    "DPO-tokens",
    "KTO-tokens",
    "DPO",
    "DPO-f_divergence",
    "SimPO-sft",
    "CPO-lora",
    "ORPO-weighted",
    "KTO",
    "KTO-lora-weighted",
)
RUNS = [(name, *TWO) for name in CASES] + [(name, *THREE) for name in OF_THREE]


def launch(specs, ranks, folder):
    """Runs all `specs`, one after the other, in `ranks` processes. What went wrong, or an empty text."""
    (folder / f"{ranks}.json").write_text(json.dumps([spec | {"ranks": ranks} for spec in specs]), encoding="utf-8")
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += [str(WORKER), str(folder / f"{ranks}.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    return "" if done.returncode == 0 else done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory, tiny_model_dir, other_model_dir):
    """results(run, ranks) -> what that run ended with; only runs that were selected are made."""
    folder = tmp_path_factory.mktemp("ranks")
    chosen = [item.callspec.params["run"] for item in request.session.items if "run" in _params(item)]
    specs, errors = {1: {}, 2: {}, 3: {}}, {}
    for run in chosen:
        name, ranks, batch, accumulation = run
        common = {"rows": 13, "model": tiny_model_dir, "reference": other_model_dir} | CASES[name]
        for count, cut in ((ranks, (batch, accumulation)), (1, (ranks * batch * accumulation, 1))):
            own = folder / f"{name}-{ranks}-{count}"
            files = {"folder": str(own), "out": f"{own}.pt", "batch": cut[0], "accumulation": cut[1]}
            config = common.get("alone" if count == 1 else "config", common.get("config", {}))
            specs[count][run] = common | files | {"config": config}

    def result(run, ranks):
        if ranks not in errors:
            errors[ranks] = launch(list(specs[ranks].values()), ranks, folder)
        out = Path(specs[ranks][run]["out"])
        assert out.exists(), errors[ranks]
        return torch.load(out, weights_only=True)

    return result


def _params(item):
    return item.callspec.params if item.path == Path(__file__) and hasattr(item, "callspec") else {}


@pytest.mark.parametrize("run", RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS])
def test_same_as_one_process(run, results):
    """13 rows, and 7 for evaluation: nothing divides, so the sampler repeats rows in the last round; they must weigh
    nothing."""
    config = CASES[run[0]].get("config", {})
    several, one = results(run, run[1]), results(run, 1)
    gap = sum(((one["update"][n] - several["update"][n]).double() ** 2).sum() for n in one["update"]) ** 0.5
    size = sum((one["update"][n].double() ** 2).sum() for n in one["update"]) ** 0.5
    assert size > 0
    assert gap / size < 1e-5
    assert len(one["logs"]) == len(several["logs"]) == 5
    skipped = SKIPPED | (UPSTREAM_MEANS if TRLS_OWN & config.keys() else set())
    for mine, other in zip([*one["logs"], one["evaluation"]], [*several["logs"], several["evaluation"]], strict=True):
        assert mine.keys() == other.keys()
        skipped = skipped | ({"padding_ratio"} if "alone" in CASES[run[0]] else set())
        for name in {name for name in mine if name.removeprefix("eval_") not in skipped} - SKIPPED:
            assert other[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("run", [("KTO", *TWO), ("KTO", *THREE)], ids=["2", "3"])
def test_z_ref_is_global_and_does_something(run, results):
    """Equal to one process's in the test above; here, that it is logged and above zero where it can be compared."""
    logged = [log["z_ref"] for log in results(run, run[1])["logs"]]
    assert any(value > 0 for value in logged)


@pytest.mark.parametrize("run", [("KTO-one_label", *TWO)], ids=["2"])
def test_steps_of_one_label_are_those_of_all_ranks(run, results):
    """One row of 13 is undesirable: of the two steps of an epoch one has it, on one of the ranks."""
    steps = [log["one_label_steps"] for log in results(run, 2)["logs"]]
    assert steps == [log["one_label_steps"] for log in results(run, 1)["logs"]]
    assert steps[0] + steps[1] == steps[2] + steps[3] == 1.0


@pytest.mark.parametrize("run", [("ORPO", *TWO), ("CPO", *TWO), ("DPO-mix", *TWO)], ids=["ORPO", "CPO", "mix"])
def test_nll_is_logged_as_a_token_mean_of_all_ranks(run, results):
    """The token means that several processes log are those of one, to rounding."""
    for mine, other in zip(results(run, 1)["logs"], results(run, run[1])["logs"], strict=True):
        assert other["nll_loss"] == pytest.approx(mine["nll_loss"], rel=1e-5)
        assert other["num_tokens"] == mine["num_tokens"]
