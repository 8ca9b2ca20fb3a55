"""Every objective against the values and gradients that the authors' own code gives (tests/golden/*.json).

Cases from a further folder are read when TRL_PLUS_GOLDEN_DIR names one.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from trl_plus import objectives as O

RTOL = 1e-8
# Not offered: KTO's paired variants with their own reference point, and TRL's mean of rank means (ours pools all rows)
NOT_OFFERED = {"kto_pair", "kto_rlhfbook", "kto_two_ranks_mean_of_means"}


def _cases():
    folders = [Path(__file__).parent, *(Path(d) for d in [os.environ.get("TRL_PLUS_GOLDEN_DIR")] if d)]
    for file in sorted(f for folder in folders for f in folder.glob("*.json")):
        for case in json.loads(file.read_text())["cases"]:
            if case["algo"] not in NOT_OFFERED:
                yield pytest.param(case, id=f"{case['algo']}-{case['id']}")


def _tensors(case):
    """The inputs in float64; the policy's log-probabilities as leaves."""
    tensors, leaves = {}, {}
    for name, value in case["inputs"].items():
        if name == "label":
            tensors[name] = torch.tensor(value, dtype=torch.bool)
        elif name.startswith("nll_mask"):
            raw = value["mask"] if isinstance(value, dict) else value
            tensors[name] = torch.tensor(raw, dtype=torch.bool)
        else:
            logps = torch.tensor(value["logps"], dtype=torch.float64)
            if name.startswith("policy"):
                leaves[name] = logps.requires_grad_()
            tensors[name] = (logps, torch.tensor(value["mask"], dtype=torch.bool))
    return tensors, leaves


def _completions(tensors, policy, ref):
    logps, mask = tensors[policy]
    return O.Completions(logps, mask, tensors[ref][0] if ref in tensors else None)


def _paired(algo, p, chosen, rejected):
    beta, e, loss_type = p["beta"], p.get("label_smoothing", 0.0), p.get("loss_type", "sigmoid")
    # keyed lookups, so that a param that no branch reads would show as a mismatch of the values
    match algo:
        case "dpo":
            return O.dpo(chosen, rejected, beta=beta)
        case "cdpo":
            return O.dpo(chosen, rejected, beta=beta, label_smoothing=e)
        case "robust":
            return O.robust(chosen, rejected, beta=beta, label_smoothing=e)
        case "ipo_sum" | "ipo_avg":
            return O.ipo(chosen, rejected, beta=beta, reduction="sum" if algo == "ipo_sum" else "mean")
        case "hinge" | "dpo_norm" | "apo_zero" | "apo_down":
            return getattr(O, algo)(chosen, rejected, beta=beta)
        case "simpo" | "simpo_hinge":
            gamma = beta * p["gamma_beta_ratio"]
            return O.simpo(chosen, rejected, beta=beta, gamma=gamma, label_smoothing=e, loss_type=loss_type)
        case "cpo_simpo":
            return O.simpo(chosen, rejected, beta=beta, gamma=p["gamma"])
        case "cpo" | "cpo_hinge" | "cpo_ipo":
            return O.cpo(chosen, rejected, beta=beta, label_smoothing=e, loss_type=loss_type)
        case _ if algo.startswith("orpo"):
            odds = "token" if algo == "orpo_per_token_odds" else "sequence"
            return O.odds_ratio(chosen, rejected, beta=beta, odds=odds)
    raise AssertionError(f"golden algorithm {algo!r} is neither implemented nor listed as not offered")


def _unpaired(algo, p, tensors):
    rows = _completions(tensors, "policy", "ref")
    kwargs = {k: p[k] for k in ("beta", "desirable_weight", "undesirable_weight")}
    if algo == "apo_zero_unpaired":
        return O.apo_zero_unpaired(rows, tensors["label"], **kwargs), None
    kl = _completions(tensors, "policy_kl", "ref_kl").log_ratio
    kl = torch.cat([kl, torch.tensor(p.get("other_rank_kl", []), dtype=kl.dtype)])
    z_ref = O.reference_point(kl.sum(), torch.tensor(len(kl)))
    return O.kto(rows, tensors["label"], z_ref, **kwargs), z_ref


def _nll(case, tensors, chosen):
    """Token-mean NLL of the chosen side over the positions that the case names."""
    wants_prompt = "prompt" in case["params"].get("nll", "")
    mask = tensors["nll_mask_chosen"] if wants_prompt else chosen.mask
    over = O.Completions(chosen.logps, mask)
    return -over.total.sum() / over.length.sum()


@pytest.mark.parametrize("case", list(_cases()))
def test_golden(case):
    tensors, leaves = _tensors(case)
    algo, p, expected = case["algo"], case["params"], case["expected"]
    if "policy" in tensors:
        per_sequence, z_ref = _unpaired(algo, p, tensors)
        loss = per_sequence.mean()
        if z_ref is not None:
            assert z_ref.item() == pytest.approx(expected["aux"]["z_ref"], rel=RTOL, abs=1e-12)
    else:
        chosen = _completions(tensors, "policy_chosen", "ref_chosen")
        rejected = _completions(tensors, "policy_rejected", "ref_rejected")
        per_sequence = _paired(algo, p, chosen, rejected)
        if algo == "orpo_per_seq_nll":
            per_sequence = per_sequence - chosen.mean
        loss = per_sequence.mean()
        if case["nll_term"]:
            loss = loss + case["nll_term"]["weight"] * _nll(case, tensors, chosen)
        elif algo == "orpo_per_token_odds":  # its NLL has weight 1 and no entry of its own
            loss = loss + _nll(case, tensors, chosen)
    assert loss.item() == pytest.approx(expected["loss"], rel=RTOL)
    if expected["per_sequence"] is not None:
        torch.testing.assert_close(
            per_sequence.detach(), torch.tensor(expected["per_sequence"], dtype=torch.float64), rtol=RTOL, atol=1e-12
        )
    loss.backward()
    for name, grad in expected["grads"].items():
        # a row that the loss does not reach (KL rows: z_ref is detached) has gradient zero
        got = leaves[name].grad if leaves[name].grad is not None else torch.zeros_like(leaves[name])
        torch.testing.assert_close(got, torch.tensor(grad, dtype=torch.float64), rtol=RTOL, atol=1e-12)


def test_public_half_is_whole():
    cases = json.loads((Path(__file__).parent / "golden_public.json").read_text())["cases"]
    assert len(cases) == 170
