"""The runs that are made under each engine, by name. Those in SLOW are made by `pytest -m slow` only."""

import os

METHODS = ("DPO", "SimPO", "CPO", "ORPO", "KTO")
ENGINES = ("fsdp2", "zero2", "zero3")
# A large epsilon: with Adam's own a gradient near zero makes a step of full size, in the direction of its rounding
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 0.3, "adam_epsilon": 1e-3}
SAVING = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0, "max_steps": 4, "save_strategy": "steps",
          "save_steps": 1, "save_total_limit": 3}  # fmt: skip
CHECKPOINTING = {"gradient_checkpointing": True}
RAM = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}  # rank 0 alone reads the weights
SHARDS = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}


def _matrix() -> dict[str, dict]:
    """Every trainer, full weights and LoRA, the model as an instance and as a path."""
    cells = {}
    for method in METHODS:
        for lora in (False, True):
            for path in (False, True):
                cell = {"method": method, "lora": lora, "path": path}
                if method in ("DPO", "KTO") and not lora and not path:
                    cell["other_reference"] = True
                cells[f"{method}{'-lora' * lora}{'-path' * path}"] = cell
    return cells


# The update of two ranks against that of one process
SAME = _matrix() | {
    "DPO-adamw-tied": {"method": "DPO", "tied": True, "other_reference": True, "config": ADAMW | CHECKPOINTING},
    "KTO-lora-adamw": {"method": "KTO", "lora": True, "config": ADAMW | CHECKPOINTING},
    "ORPO-tied": {"method": "ORPO", "tied": True},
    "DPO-edited": {"method": "DPO", "edited": True},
    "KTO-edited": {"method": "KTO", "edited": True},
    "DPO-precomputed": {"method": "DPO", "config": {"precompute_ref_log_probs": True}},
    "DPO-precomputed-given": {
        "method": "DPO",
        "other_reference": True,
        "config": {"precompute_ref_log_probs": True},
    },
    "DPO-lora-precomputed": {"method": "DPO", "lora": True, "path": True, "config": {"precompute_ref_log_probs": True}},
    "DPO-own-loss": {  # TRL's own loss, and attention that no registry knows
        "method": "DPO",
        "path": True,
        "config": {"f_divergence_type": "js_divergence", "model_init_kwargs": {"attn_implementation": "eager"}},
    },
    "DPO-lora-and-head": {"method": "DPO", "lora": True, "lora_options": {"modules_to_save": ["lm_head"]}},
    "KTO-evaluated-first": {"method": "KTO", "other_reference": True, "evaluated_first": True},
    "DPO-ram": {"method": "DPO", "path": True, "env": RAM},
    "KTO-ram-instance": {"method": "KTO", "env": RAM},
    "DPO-lora-ram": {"method": "DPO", "lora": True, "path": True, "env": RAM},
    "SimPO-tokens": {"method": "SimPO", "sharded": {"tokens_per_device": 60}},
    "KTO-tokens": {"method": "KTO", "sharded": {"tokens_per_device": 60}},
}
# One rank's proof of the packed layout fails
FAILING = {f"DPO-fail-{how}": {"method": "DPO", "other_reference": True, "fail": how} for how in ("layer", "before")}
# Every rank takes the model's own logits: no fused head is right for the model, or one rank finds that none is
OWN_LOGITS = {
    "DPO-own-logits": {"method": "DPO", "kind": "Transformed"},
    "SimPO-own-logits-lora": {"method": "SimPO", "kind": "Transformed", "lora": True},
    "SimPO-head-differs": {"method": "SimPO", "fail": "head differs"},
    "KTO-head-fails": {"method": "KTO", "other_reference": True, "fail": "head fails"},
}
POISONED = {
    "DPO-stop": {"method": "DPO", "other_reference": True, "do": "nonfinite", "config": {"max_steps": 4}},
    "DPO-gradient": {"method": "DPO", "do": "nonfinite", "gradient": True},
    "SimPO-skip": {"method": "SimPO", "do": "nonfinite", "config": {"max_steps": 4, "nonfinite": "skip"}},
}
RESUMED = {
    "resume-DPO": {"method": "DPO", "do": "resume", "config": SAVING},
    "resume-KTO-lora": {"method": "KTO", "lora": True, "do": "resume", "config": SAVING},
    "resume-SimPO-shards": {"method": "SimPO", "do": "resume", "config": SAVING, "env": SHARDS, "gather": False},
    "resume-KTO": {"method": "KTO", "other_reference": True, "do": "resume", "config": SAVING},
}
RECIPES = {
    "recipe-DPO": {"method": "DPO", "do": "recipe", "keys": {"use_peft": False}},
    "recipe-SimPO-lora": {"method": "SimPO", "do": "recipe", "keys": {"use_peft": True, "lora_r": 4}},
    "recipe-SimPO-shards": {
        "method": "SimPO",
        "do": "recipe",
        "keys": {"use_peft": False},
        "env": SHARDS,
        "gather": False,
    },
}
# A kernel of one rank fails after its proof. The last run: under sharded weights that rank ends, and with it the group
LATE = {"DPO-late": {"method": "DPO", "other_reference": True, "do": "late", "config": {"max_steps": 3}}}
CELLS = SAME | FAILING | OWN_LOGITS | POISONED | RESUMED | RECIPES | LATE

QUICK = {
    "DPO", "DPO-path", "KTO", "KTO-path", "SimPO", "CPO-path", "ORPO", "DPO-lora", "KTO-lora-path", "SimPO-lora-path",
    "CPO-lora", "ORPO-lora", "DPO-adamw-tied", "KTO-lora-adamw", "DPO-edited", "DPO-precomputed", "DPO-own-loss",
    "DPO-lora-and-head", "KTO-evaluated-first", "DPO-ram", "KTO-ram-instance", "DPO-fail-layer", "DPO-fail-before",
    "DPO-stop", "DPO-gradient", "SimPO-skip", "resume-DPO", "resume-KTO-lora", "resume-SimPO-shards", "recipe-DPO",
    "recipe-SimPO-lora", "recipe-SimPO-shards", "DPO-own-logits", "SimPO-head-differs", "KTO-head-fails", "DPO-late",
}  # fmt: skip


def made_under(name: str, engine: str) -> bool:
    """Whether a run says anything new under an engine."""
    cell = CELLS[name]
    if cell.get("sharded") or cell.get("env") == RAM:
        return engine == "fsdp2"  # DeepSpeed counts micro-batches itself, and has no such loading
    if cell.get("env") == SHARDS:
        return engine != "zero2"
    return engine == "zero3" or not cell.get("evaluated_first")  # the others refuse it


def spec_of(name: str, models: dict[str, str], out: str) -> dict:
    """A cell as the worker reads it; `models` gives the folders of "model", "other", "tied" and "tied_other"."""
    cell = dict(CELLS[name])
    tied, other = cell.pop("tied", False), cell.pop("other_reference", False)
    cell["model"] = models["tied" if tied else "model"]
    if other:
        cell["reference"] = models["tied_other" if tied else "other"]
    return cell | {"out": os.path.join(out, name)}
