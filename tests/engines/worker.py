"""One rank of several runs under one engine, one after the other in one process group. Started by test_engines.py.

`worker.py ENGINE FILE`: FILE lists the cells; rank 0 writes `<out>` of each. Engines: single, fsdp2, zero2, zero3.
"""

import json
import os
import random
import sys
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed

import trl_plus
from tests import odd_models
from tests.conftest import make_pairs, make_unpaired
from trl_plus.step.nonfinite import NonFiniteError

ENGINE = sys.argv[1] if __name__ == "__main__" else "single"
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
STAGE = int(ENGINE[4]) if ENGINE.startswith("zero") else 0


def begin_engine() -> None:
    """accelerate's state, made before any configuration: gloo, on CPUs."""
    if ENGINE == "fsdp2":
        defaults = {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        }
        os.environ |= defaults | dict(os.environ)  # a cell may say otherwise
        PartialState(cpu=True)
    if STAGE:
        os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
        import deepspeed

        # DeepSpeed would compile it, which takes minutes. All that it has is a faster reduction than gloo's
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(backend="gloo")


def engine_options(cell: dict) -> dict:
    """What a configuration has to say for this engine."""
    if ENGINE == "single":
        return {"use_cpu": True}
    options = {"accelerator_config": {"use_configured_state": True}}
    if STAGE:
        zero = {"stage": STAGE} | (
            {"stage3_gather_16bit_weights_on_model_save": cell.get("gather", True)} if STAGE == 3 else {}
        )
        auto = (
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "train_batch_size",
            "gradient_clipping",
        )
        options["deepspeed"] = dict.fromkeys(auto, "auto") | {
            "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        }  # fmt: skip
        if cell.get("bf16_engine"):
            options["deepspeed"]["bf16"] = {"enabled": True}
    return options


def make_rows(cell: dict, count: int, seed: int = 0) -> list:
    return (make_unpaired if cell["method"] == "KTO" else make_pairs)(count, seed)


def make_args(cell: dict, folder: str):
    # 13 rows in steps of 8: nothing divides, so the sampler repeats rows in the last round of each epoch
    batch, accumulation = (2, 2) if ENGINE != "single" else (8, 1)
    values = {
        "output_dir": folder, "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd", "seed": 3,
        "max_grad_norm": 0.0, "bf16": False, "gradient_checkpointing": False, "report_to": [], "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "max_length": 128, "max_steps": 3,
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": 3 if ENGINE != "single" else 7,
    }  # fmt: skip
    values |= cell.get("config", {}) | (cell.get("sharded", {}) if ENGINE != "single" else {}) | engine_options(cell)
    return getattr(trl_plus, f"{cell['method']}Config")(**values)


def load(path: str):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@contextmanager
def gathered(model):
    """The whole weights on every rank, to be changed."""
    parameters = list(model.parameters())
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def make_trainer(cell: dict, folder: str, cls=None, **extra):
    set_seed(3)
    args = make_args(cell, folder)
    model = cell["model"] if cell.get("path") else load(cell["model"])
    if cell.get("kind"):
        model = odd_models.build(getattr(odd_models, cell["kind"]), len(AutoTokenizer.from_pretrained(cell["model"])))
    if cell.get("edited"):  # in memory: no checkpoint holds these weights
        with gathered(model), torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    if cell.get("lora"):
        own = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | cell.get("lora_options", {})
        extra["peft_config"] = LoraConfig(**own)
    elif cell.get("reference"):
        extra["ref_model"] = load(cell["reference"])
    if cell.get("evaluated", True):
        extra["eval_dataset"] = Dataset.from_list(make_rows(cell, 7, 5))
    set_seed(3)  # adapters begin alike
    cls = cls or getattr(trl_plus, f"{cell['method']}Trainer")
    trainer = cls(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(make_rows(cell, cell.get("rows", 13))),
        processing_class=AutoTokenizer.from_pretrained(cell["model"]),
        **extra,
    )
    kinds = {"single": "NO", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert trainer.accelerator.distributed_type.value == kinds[ENGINE], trainer.accelerator.distributed_type
    assert trainer.accelerator.num_processes == WORLD == (1 if ENGINE == "single" else 2)
    if STAGE:
        assert trainer.accelerator.state.deepspeed_plugin.zero_stage == STAGE
    return trainer


def weights_of(trainer, cell: dict) -> dict:
    """The whole trained weights, on rank 0; the part of rank 0 where the engine is told not to gather them."""
    lora = cell.get("lora")
    if ENGINE == "zero3" and not cell.get("gather", True):
        found = {name: parameter.ds_tensor for name, parameter in trainer.model.named_parameters()}
    elif ENGINE in ("fsdp2", "zero3"):
        found = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        found = trainer.model.state_dict()
    if RANK:
        return {}
    trained = {name.removeprefix("module."): value.detach().clone().float() for name, value in found.items()}
    return {name: value for name, value in trained.items() if not lora or "lora" in name or "modules_to_save" in name}


def is_sharded(trainer) -> bool:
    """Whether the weights of policy and reference model are cut across the processes, as the engine promises."""
    models = [trainer.model] + ([trainer.ref_model] if trainer.ref_model is not None else [])
    kinds = {"fsdp2": lambda p: type(p).__name__ == "DTensor", "zero3": lambda p: hasattr(p, "ds_id")}
    return all(kinds[ENGINE](p) for model in models for p in model.parameters()) if ENGINE in kinds else False


def logs_of(trainer) -> list:
    return [log for log in trainer.state.log_history if "loss" in log]


def train(cell: dict) -> dict:
    """Trains, and evaluates after it."""
    failing = fail_proof(cell["fail"]) if cell.get("fail") and RANK == 1 else nullcontext()
    trainer = make_trainer(cell, cell["out"] + ".run")
    start = weights_of(trainer, cell) if ENGINE == "single" else {}
    with failing:
        before = trainer.evaluate() if cell.get("evaluated_first") else None
        trainer.train()
    evaluation = trainer.evaluate() if trainer.eval_dataset is not None else {}
    return {
        "weights": weights_of(trainer, cell), "start": start, "logs": logs_of(trainer),
        "evaluation": evaluation, "before": before, "layouts": [layout.layout for layout in trainer.row_layouts],
        "sharded": is_sharded(trainer), "reasons": of_all_ranks([head._reasons for head in trainer._heads]),
    }  # fmt: skip


def of_all_ranks(value) -> list:
    found = [None] * WORLD
    if WORLD == 1:
        return [value]
    torch.distributed.all_gather_object(found, value)
    return found


def failing(*args, **kwargs):
    raise RuntimeError("no kernel on this rank")


@contextmanager
def fail_proof(how: str):
    """One rank's proof fails: that of the layout in a layer or before any pass, or that of the LM head."""
    import trl_plus.forward.layout_proof as proof
    from trl_plus.forward import lm_head
    from trl_plus.forward.attention import interface

    places = {
        "layer": (interface, "backend", failing),
        "before": (proof, "plan_rows", lambda *args: None),
        "head fails": (lm_head, "_chunk", lambda hidden, targets, head, *args: failing(head(hidden))),
        "head differs": (lm_head, "difference", lambda *args: torch.ones(1)),
    }
    module, name, instead = places[how]
    kept = getattr(module, name)
    setattr(module, name, instead)
    try:
        yield
    finally:
        setattr(module, name, kept)


def late(cell: dict) -> dict:
    """A kernel of rank 1 fails after the first step. What an error printed, if there was one, on every rank."""
    from trl_plus.forward.attention import interface

    trainer, kernel, said = make_trainer(cell, cell["out"] + ".run"), interface.backend, ""
    interface.backend = lambda *args: (failing if RANK and trainer.state.global_step else kernel)(*args)
    try:
        trainer.train()
    except Exception as error:
        said = str(error)
        Path(f"{cell['out']}.{RANK}.txt").write_text(said)
        if RANK:
            os._exit(1)
    finally:
        interface.backend = kernel
    return {"said": said, "layouts": [] if said else of_all_ranks([layout.layout for layout in trainer.row_layouts]),
            "weights": {} if said else weights_of(trainer, cell), "start": {}}  # fmt: skip


class Poison:
    """The loss of rank 1's rows (or of all rows, alone) is not a number in the third step, or its gradient is not."""

    gradient = False

    def pair_losses(self, chosen, rejected):
        losses = super().pair_losses(chosen, rejected)
        if RANK == WORLD - 1 and self.model.training and self.state.global_step == 2:
            losses = losses + (losses * 0).sqrt() if self.gradient else losses * float("nan")
        return losses


def nonfinite(cell: dict) -> dict:
    own = {"gradient": cell.get("gradient", False)}
    cls = type("Poisoned", (Poison, getattr(trl_plus, f"{cell['method']}Trainer")), own)
    trainer, said = make_trainer(cell, cell["out"] + ".run", cls), ""
    try:
        trainer.train()
    except NonFiniteError as error:
        said = str(error)
    return {"said": said, "steps": trainer.state.global_step, "logs": logs_of(trainer), "start": {},
            "weights": {} if own["gradient"] else weights_of(trainer, cell)}  # fmt: skip


def resume(cell: dict) -> dict:
    """Four steps, and the last two of them again from the checkpoint in the middle."""
    found = {}
    for name in ("whole", "resumed"):
        fresh_state()
        folder = cell["out"] + ".whole"
        trainer = make_trainer(cell, folder if name == "whole" else cell["out"] + ".resumed")
        trainer.train(resume_from_checkpoint=None if name == "whole" else f"{folder}/checkpoint-2")
        found[name] = weights_of(trainer, cell)
        found[f"{name} logs"] = logs_of(trainer)
        found[f"{name} folder"] = trainer.args.output_dir
        found[f"{name} files"] = sorted(path.name for path in Path(trainer.args.output_dir).iterdir())
    return found


def recipe(cell: dict) -> dict:
    """A run of a recipe, as `trl-plus train` makes it in each process."""
    from trl_plus.recipes.recipe import load_recipe
    from trl_plus.training.run import run

    folder = Path(cell["out"] + ".recipe")
    if RANK == 0:
        folder.mkdir()
        for split, rows in (("train", make_rows(cell, 13)), ("test", make_rows(cell, 7, 5))):
            (folder / f"rows_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {key: value for key, value in engine_options(cell).items() if key != "use_cpu"}
        values = {
            "method": cell["method"].lower(), "model_name_or_path": cell["model"], "dataset_name": str(folder / "rows"),
            "output_dir": str(folder / "out"), "learning_rate": 0.05, "per_device_train_batch_size": 2, "bf16": False,
            "per_device_eval_batch_size": 3, "max_steps": 3, "gradient_checkpointing": True, "disable_tqdm": True,
            "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "dtype": "float32", **options,
            **cell.get("keys", {}),
        }  # fmt: skip
        (folder / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    PartialState().wait_for_everyone()
    Trainer.end = lambda self: None  # the process group is that of the next cell, too
    said: list = []
    run(load_recipe(str(folder / "r.yaml")), None, said.append)
    return {"said": [text for text in said if isinstance(text, str)], "folder": str(folder / "out")}


def fresh_state() -> None:
    """accelerate keeps the first configuration of a process: what a run of its own process would not see."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    begin_engine()
    if ENGINE == "fsdp2":  # accelerate makes DDP of FSDP for MULTI_CPU; nothing of FSDP2 needs a GPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    random.seed(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        kept = dict(os.environ)
        os.environ |= one.get("env", {})
        fresh_state()
        try:
            result = globals()[one.get("do", "train")](one)
        except Exception:
            result = {"error": traceback.format_exc()}
            print(one["out"], result["error"], file=sys.stderr, flush=True)
        if RANK == 0 or "error" in result:
            torch.save(result, one["out"] if RANK == 0 else one["out"] + f".{RANK}")
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        os.environ.update(kept)
