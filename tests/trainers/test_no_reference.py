"""SimPO, CPO and ORPO hold one model: no second one is loaded, built, copied or hashed, whatever the engine.

tests/engines runs FSDP2 and DeepSpeed. Here the constructors only believe to run under them, which is what decides
whether TRL makes a reference; DPO, which needs one, shows that every way of making it is counted.
"""

from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.trainer import dpo_trainer

import trl_plus

METHODS = ("SimPO", "CPO", "ORPO")
ENGINES = ("ddp", "fsdp", "zero2", "zero3")


@pytest.fixture
def made(monkeypatch):
    """How every causal language model came to be since: "loaded", "built" or "copied"; also "hashed" and "sharded"."""
    events = []
    model = transformers.PreTrainedModel
    load, init = model.from_pretrained.__func__, transformers.Qwen2ForCausalLM.__init__

    def loaded(cls, *args, **kwargs):
        events.append("loaded")
        return load(cls, *args, **kwargs)

    def built(self, *args, **kwargs):
        events.append("built")
        init(self, *args, **kwargs)

    def copied(self, memo):
        events.append("copied")
        twin = type(self)(self.config)
        events.remove("built")  # the copy's own
        twin.load_state_dict(self.state_dict())
        return twin

    def sharded(model, accelerator):
        events.append("sharded")
        return model

    monkeypatch.setattr(model, "from_pretrained", classmethod(loaded))
    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "__init__", built)
    monkeypatch.setattr(model, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(dpo_trainer, "hash_module", lambda module: events.append("hashed") or "0")
    for name in ("prepare_fsdp", "prepare_deepspeed"):
        monkeypatch.setattr(dpo_trainer, name, sharded)
    return events


@pytest.fixture
def under(monkeypatch):
    """under("zero3", config): what transformers and TRL ask about the engine is answered with it."""

    def simulate(engine, args):
        plugin = SimpleNamespace(zero_stage=int(engine[-1])) if engine.startswith("zero") else None
        create = transformers.Trainer.create_accelerator_and_postprocess

        def created(self):
            self.args.deepspeed_plugin = None  # accelerate would import DeepSpeed
            create(self)
            self.args.deepspeed_plugin = plugin
            self.is_deepspeed_enabled, self.is_fsdp_enabled = plugin is not None, engine == "fsdp"

        monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", created)
        args.deepspeed_plugin = plugin

    return simulate


@pytest.fixture
def construct(tmp_path, pair_rows, tokenizer, under):
    def make(method, engine, model, **config):
        args = getattr(trl_plus, f"{method}Config")(
            output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
            save_strategy="no", max_steps=1, disable_tqdm=True, per_device_train_batch_size=4, **config,
        )  # fmt: skip
        under(engine, args)
        rows = Dataset.from_list(pair_rows(4))
        return getattr(trl_plus, f"{method}Trainer")(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer
        )

    return make


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_a_path_is_loaded_once(method, engine, made, construct, tiny_model_dir):
    trainer = construct(method, engine, tiny_model_dir)
    assert made == ["loaded", "built"]
    assert trainer.ref_model is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_an_instance_stays_the_only_model(method, engine, made, construct, build_tiny_model):
    model = build_tiny_model(9)
    made.clear()
    trainer = construct(method, engine, model)
    assert made == []
    assert trainer.ref_model is None
    assert trainer.model is model


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trained_adapter_is_not_doubled(engine, made, construct, build_tiny_model):
    model = get_peft_model(build_tiny_model(9), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    made.clear()
    trainer = construct("SimPO", engine, model)
    assert made == []
    assert trainer.ref_model is None
    assert set(trainer.model.peft_config) == {"default"}
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_makes_none_either(method, made, construct, tiny_model_dir):
    trainer = construct(method, "ddp", tiny_model_dir)
    made.clear()
    trainer.train()
    assert made == []


@pytest.mark.parametrize(
    "engine, as_path, expected",
    [
        ("ddp", True, ["loaded", "built", "loaded", "built"]),
        ("fsdp", True, ["loaded", "built", "loaded", "built", "sharded"]),
        ("zero3", True, ["loaded", "built", "loaded", "built", "sharded"]),
        ("fsdp", False, ["copied", "sharded"]),
        ("zero2", False, ["copied", "sharded"]),
    ],
)
def test_a_reference_would_have_been_seen(engine, as_path, expected, made, construct, tiny_model_dir):
    model = tiny_model_dir
    if not as_path:
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        made.clear()
    assert construct("DPO", engine, model).ref_model is not None
    assert made == expected


def test_a_hash_would_have_been_seen(made, construct, tiny_model_dir):
    construct("DPO", "ddp", tiny_model_dir, precompute_ref_log_probs=True)
    assert "hashed" in made


@pytest.mark.parametrize("method", METHODS)
def test_the_loader_is_given_back(method, construct, tiny_model_dir):
    """The constructor replaces TRL's loading function for its own duration, also when it fails."""
    loader = dpo_trainer.create_model_from_path
    construct(method, "ddp", tiny_model_dir)
    assert dpo_trainer.create_model_from_path is loader
    with pytest.raises(OSError):
        construct(method, "ddp", "no-such-model")
    assert dpo_trainer.create_model_from_path is loader
