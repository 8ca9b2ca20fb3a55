"""One rank of several runs, one after the other in one process group: each trains a method on a tiny model and saves
what rank 0 ends with. Started by test_ranks.py with a file that lists the runs."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_plus
from tests.conftest import make_pairs, make_unpaired


def make_trainer(spec: dict):
    method = spec["method"]
    make_rows = make_unpaired if method == "KTO" else make_pairs
    rows = make_rows(spec["rows"])
    if spec.get("weighted"):
        rows = [row | {"weight": 0.5 + (i % 3)} for i, row in enumerate(rows)]
    if spec.get("one_undesirable"):
        rows = [row | {"label": i > 0} for i, row in enumerate(rows)]
    args = getattr(trl_plus, f"{method}Config")(
        output_dir=spec["folder"], learning_rate=0.1, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0,
        bf16=False, use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1,
        seed=3, disable_tqdm=True, max_length=128, max_steps=5, per_device_train_batch_size=spec["batch"],
        per_device_eval_batch_size=3, gradient_accumulation_steps=spec["accumulation"], **spec.get("config", {}),
    )  # fmt: skip
    extra = {}
    if method in ("DPO", "KTO"):
        extra["ref_model"] = AutoModelForCausalLM.from_pretrained(spec["reference"], dtype=torch.float32)
    if spec.get("lora"):
        extra = {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")}
    return getattr(trl_plus, f"{method}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(make_rows(7, 5)),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        **extra,
    )


def main(spec: dict) -> None:
    trainer = make_trainer(spec)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    evaluation = trainer.evaluate()
    assert trainer.accelerator.num_processes == spec["ranks"]
    if trainer.is_world_process_zero():
        update = {n: p.detach() - before[n] for n, p in trainer.model.named_parameters() if n in before}
        logs = [log for log in trainer.state.log_history if "loss" in log]
        torch.save({"update": update, "logs": logs, "evaluation": evaluation}, spec["out"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        main(one)
