"""No pickle of a dataset folder or a checkpoint is executed, and a chat template cannot leave its sandbox."""

import pickle
from pathlib import Path

import pytest

from trl_plus.data.loading import DataRequest, load
from trl_plus.errors import DataError


class Touch:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def poison(tmp_path):
    """The bytes of a pickle that makes `canary` when it is executed, and `canary`."""
    canary = tmp_path / "canary"
    return pickle.dumps(Touch(canary)), canary


def test_the_poison_works(poison):
    content, canary = poison
    pickle.loads(content)
    assert canary.exists()


@pytest.mark.parametrize("name", ["train.pkl", "train.pt", "data.py", "train.jsonl", "train.parquet", "train.csv"])
def test_a_dataset_folder(tmp_path, poison, name):
    content, canary = poison
    (tmp_path / "data").mkdir()
    if name.endswith(".py"):
        content = f"open({str(canary)!r}, 'w')".encode()
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(DataError):
        load(DataRequest(paired_method=True, name=str(tmp_path / "data")))
    assert not canary.exists()


def test_a_mixture_of_pickles(tmp_path, poison):
    content, canary = poison
    (tmp_path / "x.pkl").write_bytes(content)
    entry = {"path": "pandas", "data_files": str(tmp_path / "x.pkl")}
    with pytest.raises(DataError):
        load(DataRequest(paired_method=True, mixture=[entry]))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin", "pytorch_model.bin"]
)
def test_a_checkpoint(make_tiny_run, poison, name):
    content, canary = poison
    trainer, checkpoint = make_tiny_run()
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(content)
    if name == "training_args.bin":  # nobody reads it
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        with pytest.raises(pickle.UnpicklingError, match=r"weights_only|Weights only"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not canary.exists()


@pytest.fixture
def make_tiny_run(tmp_path, tiny_model_dir, tokenizer, pair_rows):
    """A SimPO trainer with two steps to go from a checkpoint at step 1, and that checkpoint."""
    from datasets import Dataset

    import trl_plus

    def make():
        args = trl_plus.SimPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=2, save_steps=1, per_device_train_batch_size=2, bf16=False,
            use_cpu=True, report_to=[], disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        rows = Dataset.from_list(pair_rows(4))
        for _ in range(2):
            trainer = trl_plus.SimPOTrainer(
                model=tiny_model_dir, args=args, train_dataset=rows, processing_class=tokenizer
            )
            if not (tmp_path / "out" / "checkpoint-1").exists():
                trainer.train()
        return trainer, tmp_path / "out" / "checkpoint-1"

    return make


def test_a_chat_template_is_sandboxed(tokenizer):
    from jinja2.exceptions import SecurityError

    for template in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
    ):
        with pytest.raises(SecurityError):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=template, tokenize=False)
