"""The commands: what they print and how they exit. Nothing here trains."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.launch.request import Machine
from trl_plus.recipes.package_data import recipe_names

GOOD = "method: simpo\nmodel_name_or_path: org/model\ndataset_name: org/data\noutput_dir: out\n"


def call(*words):
    return CliRunner().invoke(app, normalise(words))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["recipes", "list"],
        ["train", "--help"],
        ["train", "none.yaml"],
        ["sweep", "--help"],
        ["sweep", "none.yaml", "beta=1,2"],
        ["estimate", "--help"],
        ["evaluate", "--help"],
        ["evaluate", "none"],
        ["merge", "--help"],
        ["merge", "none", "out"],
        ["compare", "--help"],
        ["compare", "none"],
        ["compare", "--score", "none"],
        ["report", "none"],
        ["preflight", "--help"],
        ["preview", "--help"],
    ],
)
def test_fast_and_without_torch(words, starts_of):
    code = (
        "import sys\nfrom trl_plus.cli import main\n"
        f"sys.argv = ['trl-plus', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert starts_of(code) < 90  # about 30; a bare interpreter starts in 10 to 15 ms of CPU time


_AS_A_COMMAND = "from trl_plus.upstream import deferred\ndeferred.in_command = True\n"


@pytest.mark.parametrize(
    "code, absent",
    [
        (
            "from trl_plus.cli import main\nsys.argv = 'trl-plus train quickstart --dry-run'.split()\nmain()",
            "peft transformers.modeling_utils bitsandbytes deepspeed",
        ),
        (_AS_A_COMMAND + "import trl_plus\ntrl_plus.DPOTrainer", "bitsandbytes deepspeed"),
    ],
)
def test_imports_of_only_what_is_needed(code, absent):
    code = f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit as done:\n    assert not done.code\n"
    code += f"loaded = {set(absent.split())!r} & set(sys.modules)\nsys.exit(f'imported {{loaded}}' if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_loaded_later_is_the_same():
    """peft's class for `isinstance` in transformers, and bitsandbytes in peft."""
    code = """
import sys
from trl_plus import DPOConfig
assert "peft" not in sys.modules
from transformers import Qwen2Config, Qwen2ForCausalLM, trainer_utils
sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 8)
model = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, **sizes))
assert not isinstance(model, trainer_utils.PeftModel)
import peft
adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
assert isinstance(adapted, trainer_utils.PeftModel) and not isinstance(model, trainer_utils.PeftModel)
assert trainer_utils.unwrap_peft_model(adapted) is model
"""
    done = subprocess.run([sys.executable, "-c", _AS_A_COMMAND + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_gets_other_libraries_as_they_are():
    code = """
from trl_plus import DPOConfig, DPOTrainer
from transformers import trainer_utils
import peft
assert trainer_utils.PeftModel is peft.PeftModel
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version():
    assert re.fullmatch(r"trl-plus \d+\.\d+\.\d+\S*\n", call("--version").output)


def test_every_command_has_an_example():
    commands = [
        ["train"],
        ["sweep"],
        ["recipes", "list"],
        ["recipes", "show"],
        ["recipes", "copy"],
        ["schema"],
        ["env"],
        ["estimate"],
        ["evaluate"],
        ["merge"],
        ["compare"],
        ["report"],
        ["preflight"],
        ["preview"],
    ]
    for words in commands:
        assert "trl-plus " + " ".join(words) in call(*words, "--help").output


@pytest.mark.parametrize(
    "words",
    [
        ["train", "none.yaml"],
        ["train", "simpo_lora", "learning_rat=1"],
        ["train", "simpo_lora", "--beta"],
        ["train", "--beta", "1"],
        ["train"],
        ["nothing"],
        ["recipes", "show", "none"],
        ["train", "simpo_lora", "--resume", "output_dir=/none"],
        ["train", "simpo_lora", "--accelerate-config", "none"],
        ["evaluate", "none.yaml"],
        ["evaluate", "quickstart", "--model", "/"],
        ["evaluate", "/"],
        ["evaluate", "quickstart", "--rows", "0"],
        ["merge", "none", "out"],
        ["merge", "/", "out"],
        ["merge", "out"],
        ["compare"],
        ["compare", "none"],
        ["compare", "/"],
        ["compare", "--score", "none.jsonl"],
        ["report"],
        ["report", "none"],
    ],
)
def test_wrong_usage_is_2(words):
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.strip()


def test_recipes(tmp_path):
    listed = call("recipes", "list").output
    assert all(name in listed for name in recipe_names())
    assert call("recipes", "show", "simpo_lora").output.startswith("# SimPO")
    target = tmp_path / "new" / "my.yaml"
    assert call("recipes", "copy", "simpo_lora", str(target)).exit_code == 0
    shown, copied = call("recipes", "show", "simpo_lora").output, target.read_text()
    assert f"#     trl-plus train {target}\n" in copied  # its own command, and all the rest as it is shown
    assert "recipes/simpo_lora.yaml" not in copied
    assert [line for line in shown.splitlines() if line not in copied.splitlines()] == [
        "#     trl-plus train recipes/simpo_lora.yaml"
    ]
    assert call("recipes", "copy", "simpo_lora", str(target)).exit_code == 2
    assert call("recipes", "copy", "simpo_lora", str(tmp_path)).exit_code == 0
    assert (tmp_path / "simpo_lora.yaml").is_file()


def test_schema_is_json():
    schema = json.loads(call("schema").output)
    assert "learning_rate" in schema["properties"]


def test_env():
    output = call("env").output
    assert all(f"{name}: " in output for name in ("python", "torch", "trl", "trl-plus", "cpu"))


def test_resume_with_and_without_a_path():
    assert normalise(["train", "r", "--resume"]) == ["train", "r", "--resume=newest"]
    assert normalise(["train", "r", "--resume", "--dry_run"]) == ["train", "r", "--resume=newest", "--dry_run"]
    assert normalise(["train", "r", "--resume", "a=b"]) == ["train", "r", "--resume=newest", "a=b"]
    assert normalise(["train", "r", "--resume", "out/checkpoint-1"]) == ["train", "r", "--resume", "out/checkpoint-1"]
    assert normalise(["train", "r", "--resume=x", "--beta_x=1"]) == ["train", "r", "--resume=x", "--beta_x=1"]


@pytest.mark.parametrize(
    "error, code, shown", [(KeyboardInterrupt(), 130, "Interrupted"), (RuntimeError("bug"), 1, "bug")]
)
def test_exit_codes_of_a_run(monkeypatch, tmp_path, capfd, error, code, shown):
    def fail(*_):
        raise error

    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    monkeypatch.setattr("trl_plus.training.run.run", fail)
    result = call("train", str(path))
    assert result.exit_code == code
    text = result.output + capfd.readouterr().err
    assert shown in text
    assert ("Traceback" in text) == (code == 1)


def test_launch(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr("trl_plus.launch.processes.start", lambda launch, words: started.append((launch, words)) or 3)
    (tmp_path / "r.yaml").write_text(GOOD)
    (tmp_path / "a.yaml").write_text("distributed_type: MULTI_CPU\nuse_cpu: true\n")
    recipe, config = str(tmp_path / "r.yaml"), str(tmp_path / "a.yaml")
    words = ["use_cpu=true", "--accelerate_config", config, "--num_processes=2", "--resume"]
    assert call("train", recipe, *words).exit_code == 3
    ((launch, passed),) = started
    assert (launch.processes, launch.engine) == (2, "ddp")
    assert passed[0] == recipe
    assert {"use_cpu=true", "--resume=newest"} <= set(passed)
    assert not [word for word in passed if "accelerate" in word or "processes" in word]


def test_a_launched_process_does_not_launch(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    ran = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("trl_plus.training.run.run", lambda *words: ran.append(words))
    monkeypatch.setattr("trl_plus.launch.request.this_machine", lambda: Machine(gpus=1))
    (tmp_path / "r.yaml").write_text(GOOD)
    assert call("train", str(tmp_path / "r.yaml"), "--accelerate-config", "zero2").exit_code == 0
    assert len(ran) == 1


def test_unknown_accelerate_config_lists_the_known_ones():
    assert "multi_gpu" in call("train", "simpo_lora", "--accelerate-config", "none").output


def test_module_entry_point():
    result = subprocess.run([sys.executable, "-m", "trl_plus.cli", "--version"], capture_output=True, text=True)
    assert result.stdout.startswith("trl-plus ")


def test_wheel_ships_the_recipes():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"recipes" = "trl_plus/recipes/bundled"' in text


def test_options_take_underscores_for_dashes():
    """Every option of every command; a key of the recipe keeps its underscores."""
    group = typer.main.get_command(app)
    parent, seen = group.make_context("trl-plus", ["env"], resilient_parsing=True), set()
    for name, command in group.commands.items():
        for param in command.params:
            for option in (option for option in param.opts if "-" in option[2:]):
                words = ["nowhere", "--" + option[2:].replace("-", "_")] + ([] if param.is_flag else ["7"])
                context = command.make_context(name, words, parent=parent, resilient_parsing=True)
                assert context.args == [], option
                seen.add((name, option))
    assert {("train", "--dry-run"), ("compare", "--max-new-tokens")} <= seen
    done = CliRunner().invoke(app, ["train", "simpo_lora", "--dry_run", "--learning_rate", "2e-6", "--use_cpu"])
    assert done.exit_code == 0, done.output
    assert re.search(r"learning_rate\W+2\.0e-06\W+command line", done.output)
