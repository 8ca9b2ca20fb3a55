"""trl-plus estimate: what it prints and how it exits."""

import json

import jsonschema
import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.estimate.output import cures_text
from trl_plus.estimate.run import Cure, Fit
from trl_plus.recipes.package_data import recipe_names

INTEGER, NUMBER = {"type": "integer"}, {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "version", "recipe", "method", "model", "device", "engine", "layout", "processes",
                 "parameters", "memory", "micro_batch", "fit", "effective_batch", "steps", "time", "notes"],
    "properties": {
        "format": {"const": "trl_plus.estimate"},
        "version": {"const": 1},
        "recipe": {"type": "string"},
        "method": {"type": "string"},
        "model": {"type": "string"},
        "device": {"enum": ["cpu", "cuda"]},
        "engine": {"type": "string"},
        "layout": {"enum": ["packed", "shared", "rows"]},
        "processes": INTEGER,
        "parameters": {"type": "object", "required": ["all", "trained"]},
        "memory": {
            "type": "object",
            "required": ["peak_bytes", "largest", "components_bytes"],
            "properties": {"components_bytes": {"type": "object", "additionalProperties": INTEGER}},
        },
        "micro_batch": {
            "type": "object",
            "required": ["sequences", "tokens", "computed_tokens", "scored_tokens", "mean_padded_tokens"],
        },
        "fit": {"type": ["object", "null"]},
        "effective_batch": INTEGER,
        "steps": {"type": ["integer", "null"]},
        "time": {"type": ["object", "null"], "properties": {"run_seconds": NUMBER}},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip


def call(*words):
    return CliRunner().invoke(app, normalise(["estimate", *words]))


def test_the_quickstart_as_one_json_object():
    result = call("recipes/quickstart.yaml", "--json", "--memory", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["steps"] == 90
    assert found["memory"]["peak_bytes"] == sum(found["memory"]["components_bytes"].values())
    assert found["fit"]["per_device_train_batch_size"] == 16


def test_the_table_names_peak_and_batch():
    result = call("quickstart_kto", "--memory=2", "--device=cpu", "per_device_train_batch_size=4")
    assert result.exit_code == 0, result.output
    for words in (
        "peak",
        "most of the peak is",
        "packed into",
        "Largest micro-batch within 2.00 GiB",
        "Optimizer steps",
    ):
        assert words in result.stdout


def said_within(memory, *words):
    result = call("quickstart", "--device=cpu", f"--memory={memory}", "max_steps=1", *words)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_the_whole_step_bounds_the_micro_batch():
    assert "It is the whole step: more rows would be another effective batch." in said_within(100)


def test_only_cures_that_fit_are_proposed(monkeypatch):
    """The process itself, which nothing lowers, is taken away, so that the cures of a tiny model count."""
    monkeypatch.setattr("trl_plus.estimate.measure.PROCESS_BYTES", {"cpu": 0, "cuda": 0})
    text = said_within(0.012)
    assert "Each of these makes it fit: load_in_4bit=true (QLoRA), 0.01 GiB." in text
    assert "gradient_checkpointing" not in text


LORA, CUT = Cure("use_peft=true", "LoRA", 5), Cure("max_length=8", "cuts", 6)
BOTH = Cure("use_peft=true max_length=8", "", 3)


@pytest.mark.parametrize(
    ("limit", "cures", "said", "unsaid"),
    [
        (9, (LORA, CUT, BOTH), "Each of these makes it fit: use_peft=true (LoRA), 0.00 GiB; max_length=8", "smaller"),
        (5, (LORA, CUT, BOTH), "Each of these makes it fit: use_peft=true", "max_length"),
        (3, (LORA, CUT, BOTH), "All of them do, 0.00 GiB: use_peft=true max_length=8.", "smaller"),
        (2, (LORA, CUT, BOTH), "Nor do all of them, 0.00 GiB: take a smaller model", "All of them"),
        (2, (LORA,), "None of these alone makes it fit: use_peft=true (LoRA), 0.00 GiB. Take a smaller model", "all"),
        (2, (), "Nothing in the recipe lowers it: take a smaller model", "None"),
    ],
)
def test_cures_that_do_not_fit_are_said_to(limit, cures, said, unsaid):
    text = cures_text(Fit(limit, None, None, 9, cures=cures))
    assert said in text
    assert unsaid not in text.replace(said, "")


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe(name, model_folder):
    """Hub data is bounded by max_length; the hub's model is replaced by a folder, since the tests have no network."""
    result = call(name, "--json", "--device=cuda", f"model_name_or_path={model_folder}")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["device"] == "cuda"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["simpo_lora"], "could not be read"),
        (["simpo_lora", "learning_rat=1"], "learning_rate"),
        (["none.yaml"], "There is no file"),
        (["quickstart", "--calibrate", "--device=cuda"], "leave --device cuda out"),
    ],
)
def test_errors(words, sentence):
    result = call(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("error:") == 1


def test_calibration_measures_and_says_that_it_extrapolates():
    result = call("quickstart", "--calibrate", "per_device_train_batch_size=2")
    assert result.exit_code == 0, result.output
    assert "ms per micro-batch" in result.stdout
    assert "An extrapolation" in result.stdout
