"""One rank of runs in which a row of rank 1 has no finite loss at step 3, and of runs that are resumed. Started by
test_faults.py."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_plus
from tests.conftest import make_pairs, make_unpaired
from trl_plus.step.nonfinite import NonFiniteError

RANK = int(os.environ["RANK"])


class Poisoned(trl_plus.SimPOTrainer):
    """The second row of rank 1 becomes NaN in the third step, unless `healthy`."""

    healthy = False

    def pair_losses(self, chosen, rejected):
        losses = super().pair_losses(chosen, rejected)
        if RANK == 1 and not self.healthy and self.state.global_step == 2:
            losses = losses * torch.tensor([1.0, float("nan")])
        return losses


def run(folder: str, model: str, healthy: bool = False, **config) -> dict:
    args = trl_plus.SimPOConfig(
        output_dir=folder, learning_rate=0.1, max_steps=4, per_device_train_batch_size=2, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True, max_length=128, **config,
    )  # fmt: skip
    trainer = Poisoned(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(make_pairs(16)),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.healthy = healthy
    said, loss = "", None
    try:
        loss = trainer.train().training_loss
    except NonFiniteError as error:
        said = str(error)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    return {"said": said, "steps": trainer.state.global_step, "sum": weights.double().sum().item(), "logs": logs,
            "train_loss": loss}  # fmt: skip


def resumed(method: str, folder: str, model: str) -> list:
    """The weights (as a list) and losses of a run of three epochs of 11 rows, whole and gone on from steps 1 and 4."""
    found = []
    for start in (None, 1, 4):
        args = getattr(trl_plus, f"{method}Config")(
            output_dir=folder if start is None else f"{folder}-{start}", learning_rate=0.01, max_steps=6,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, bf16=False, use_cpu=True, report_to=[],
            gradient_checkpointing=False, save_strategy="steps", save_steps=1, logging_steps=1, disable_tqdm=True,
            max_length=128,
        )  # fmt: skip
        trainer = getattr(trl_plus, f"{method}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list((make_unpaired if method == "KTO" else make_pairs)(11)),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.train(resume_from_checkpoint=None if start is None else f"{folder}/checkpoint-{start}")
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        found.append([torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist(), losses])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, model_dir = sys.argv[1:]
    found = {
        choice: run(f"{where}/{choice}", model_dir, nonfinite=choice, logging_steps=1) for choice in ("stop", "skip")
    }
    for steps in (1, 3, 100):
        found[f"every {steps}"] = run(f"{where}/{steps}", model_dir, healthy=True, logging_steps=steps)
    for method in ("SimPO", "KTO"):
        found[method] = resumed(method, f"{where}/{method}", model_dir)
    Path(where, f"{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
