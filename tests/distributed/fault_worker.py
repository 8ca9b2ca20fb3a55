"""One rank of runs with a fault on rank 1, and of runs that are resumed. Started by test_faults.py.

The faults: a row has no finite loss at step 3, or a kernel fails after its layout was proved right.
"""

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
from trl_plus.forward.attention import interface
from trl_plus.step.nonfinite import NonFiniteError
from trl_plus.trainers import layouts

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


# When the kernel of rank 1 fails, apart from proofs of a layout. Then True for a reference that no layout fits
LATE = {
    "at once": ("SimPO", lambda trainer: True, False),
    "at once, before the reference is proved": ("DPO", lambda trainer: True, False),
    "KTO, at once": ("KTO", lambda trainer: True, False),
    "in step 2": ("DPO", lambda trainer: trainer.state.global_step, False),
    "in a reference pass of step 2": (
        "KTO",
        lambda trainer: trainer.state.global_step and not torch.is_grad_enabled(),
        False,
    ),
    "in step 2, beside a reference on plain rows": ("DPO", lambda trainer: trainer.state.global_step, True),
    "KTO, in step 2, beside a reference on plain rows": ("KTO", lambda trainer: trainer.state.global_step, True),
    "in an evaluation before training": ("DPO", lambda trainer: not trainer.model.training, False),
}


def late(name: str, folder: str, model: str, other: str) -> dict:
    """The update of a run whose kernel fails on one rank, and of the same run on plain rows; what both ended with."""
    method, fails, plain_reference = LATE[name]
    kernel, reason_against, found = interface.backend, layouts.reason_against, {}
    for layout in ("rows", "auto"):
        args = getattr(trl_plus, f"{method}Config")(
            output_dir=folder, learning_rate=0.1, optim="sgd", max_steps=3, per_device_train_batch_size=2,
            gradient_accumulation_steps=2, per_device_eval_batch_size=3, bf16=False, use_cpu=True, report_to=[],
            gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, max_length=128, layout=layout,
        )  # fmt: skip
        rows = make_unpaired if method == "KTO" else make_pairs
        reference = {"ref_model": AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)}
        trainer = getattr(trl_plus, f"{method}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(rows(13)),
            eval_dataset=Dataset.from_list(rows(7, 5)),
            processing_class=AutoTokenizer.from_pretrained(model),
            **({} if method == "SimPO" else reference),
        )

        def backend(*args, trainer=trainer):
            if RANK == 1 and interface._faults is None and fails(trainer):
                raise ValueError("longer than ever")
            return kernel(*args)

        def reason(row_layout, *args, trainer=trainer):
            if plain_reference and row_layout is trainer.row_layouts[1]:
                return "no layout fits"
            return reason_against(row_layout, *args)

        interface.backend, layouts.reason_against = backend, reason
        before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        try:
            if "evaluation" in name:
                trainer.evaluate()
            trainer.train()
        finally:
            interface.backend, layouts.reason_against = kernel, reason_against
        found[layout] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before
    distance = float((found["auto"] - found["rows"]).norm() / found["rows"].norm())
    return {"distance": distance, "sum": found["auto"].double().sum().item(),
            "layouts": [row_layout.layout for row_layout in trainer.row_layouts]}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, model_dir, other_dir = sys.argv[1:]
    found = {
        choice: run(f"{where}/{choice}", model_dir, nonfinite=choice, logging_steps=1) for choice in ("stop", "skip")
    }
    for steps in (1, 3, 100):
        found[f"every {steps}"] = run(f"{where}/{steps}", model_dir, healthy=True, logging_steps=steps)
    for method in ("SimPO", "KTO"):
        found[method] = resumed(method, f"{where}/{method}", model_dir)
    found["late"] = {name: late(name, f"{where}/late", model_dir, other_dir) for name in LATE}
    Path(where, f"{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
