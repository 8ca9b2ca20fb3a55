"""docs/design.md, "The way of one row": the page names what is entered, in the order in which it is entered."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from transformers import TrainerCallback

import trl_plus

ROOT = Path(trl_plus.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## The way of one row")[1].split("\n## ")[0]
_, TO_TRAIN, STEP, REST = SECTION.split("\n| what happens | where |\n")
TRAINERS = ["DPOTrainer", "SimPOTrainer", "CPOTrainer", "ORPOTrainer", "KTOTrainer"]
LIMITS = {"rows": 13, "packed": 18}


def named(table):
    """(file, function) of each `file.py: function` in a table, in order."""
    return re.findall(r"`([\w/]+\.py): ([\w.]+)`", table)


class Trace:
    """The functions of the package that are entered, by their first entry."""

    def __init__(self):
        self.entered = []

    def __call__(self, frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            name = (str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname)
            if name not in self.entered:
                self.entered.append(name)


class OneStep(TrainerCallback):
    """Traces a step without a log: the third, since the first proves what is fast."""

    def __init__(self, trace):
        self.trace = trace

    def on_step_end(self, args, state, control, **kwargs):
        sys.setprofile(self.trace if state.global_step == 2 else None)


def test_each_name_exists():
    assert len(named(TO_TRAIN)) >= 8
    for file, name in named(SECTION):
        found = import_module(f"trl_plus.{file.removesuffix('.py').replace('/', '.')}")
        for part in name.split("."):
            found = getattr(found, part)


@pytest.mark.parametrize("layout", LIMITS)
def test_a_step_enters_what_the_page_names(layout, make_trainer, pair_rows):
    trace = Trace()
    sizes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 4}
    trainer = make_trainer("SimPO", pair_rows(16), layout=layout, trainer={"callbacks": [OneStep(trace)]}, **sizes)
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    files, step = list(dict.fromkeys(file for file, _ in trace.entered)), named(STEP)
    assert [name for name in trace.entered if name in step] == step
    further = {file for file, _ in named(STEP + REST)}
    assert not [file for file in files if file not in further]
    if layout == "rows":  # attention is entered through our registry once another test of this process has used it
        files = [file for file in files if file != "forward/attention/interface.py"]
    assert len(files) <= LIMITS[layout], files
    assert f"{len(files)} files" in SECTION


@pytest.mark.parametrize("name", TRAINERS)
def test_few_classes_of_ours(name):
    ours = [kind for kind in getattr(trl_plus, name).__mro__ if kind.__module__.startswith("trl_plus")]
    assert len(ours) <= 5
    for hook in ("get_batch_samples", "training_step", "compute_loss", "train", "log"):
        assert sum(hook in vars(kind) for kind in ours) == (2 if hook == "log" else 1)
