"""The list of our dependencies on TRL and transformers is complete, and a version that does not fit is a sentence."""

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trl

from trl_plus import KTOTrainer, ORPOTrainer, SimPOTrainer
from trl_plus.trainers.seams import upstream_tokenize
from trl_plus.upstream import signatures as seams
from trl_plus.upstream.signatures import IMPORTED, OVERRIDDEN, TESTED, VersionError, check_seams, differences

PACKAGE = Path(seams.__file__).parents[1]
OVERRIDES = {name: parameters for methods in OVERRIDDEN.values() for name, parameters in methods.items()}
ATTRIBUTES = {name for names in [*seams.ATTRIBUTES.values(), *seams.OWN_ATTRIBUTES.values()] for name in names.split()}


# -- the list --------------------------------------------------------------------------------------------------------


def test_what_is_installed_fits():
    assert not list(differences())


@pytest.mark.parametrize("ours", [SimPOTrainer, ORPOTrainer, KTOTrainer])
def test_every_override_is_listed(ours):
    theirs = next(base for base in ours.__mro__ if base.__module__.startswith("trl."))
    overridden = {
        name
        for base in ours.__mro__
        if base.__module__.startswith("trl_plus.")
        for name in vars(base)
        if hasattr(theirs, name) and not name.startswith("__")
    }
    assert overridden <= OVERRIDES.keys() | ATTRIBUTES
    assert overridden >= OVERRIDES.keys()


def test_every_import_from_inside_is_listed():
    """What documented top-level names of transformers are is its own promise; TRL's are all listed."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TESTED:
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
    found = {path for path in found if not path.startswith("transformers:")} - {"trl.trainer:dpo_trainer"}
    used_as_attributes = {
        "trl.trainer.dpo_trainer:create_model_from_path",
        "transformers.modeling_utils:PreTrainedModel._from_config",
    }
    constructors = {path for path in IMPORTED if path.endswith("__init__")}
    assert found | used_as_attributes | constructors == IMPORTED.keys()


def test_every_private_attribute_is_listed():
    tree = ast.parse((PACKAGE / "trainers" / "seams.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name | ast.Call)
        and (isinstance(node.value, ast.Call) or node.value.id == "self")
        and re.match("_[a-z]", node.attr)
    }
    own, of_models = {"_part_folder"}, {"_from_config"}
    assert used - own - of_models <= OVERRIDES.keys() | ATTRIBUTES


@pytest.mark.parametrize("kind", [trl.DPOTrainer, trl.KTOTrainer])
def test_what_tokenizing_reads_of_a_trainer_is_given(kind):
    """`upstream_tokenize` calls TRL's method without a trainer."""
    (made,) = [
        node for node in ast.parse(inspect.getsource(upstream_tokenize)).body if isinstance(node, ast.FunctionDef)
    ]
    calls = [node for node in ast.walk(made) if isinstance(node, ast.Call)]
    (given,) = [{k.arg for k in call.keywords} for call in calls if getattr(call.func, "id", "") == "SimpleNamespace"]
    method = ast.parse(textwrap.dedent(inspect.getsource(kind._prepare_dataset)))
    read = {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert "_tokenizer" in read
    assert read <= given


def test_the_declared_range_begins_where_the_tests_do():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for library, (oldest, _) in TESTED.items():
        assert f'"{library}>={oldest}' in pyproject


# -- doctored libraries ----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """installed(trl="1.18.0.dev0"): what the metadata of a library states."""

    def put(**versions):
        real = importlib.metadata.version
        monkeypatch.setattr(seams, "version", lambda name: versions.get(name) or real(name))

    return put


def changed_loss(self, model, inputs, return_outputs, weights):
    pass


def prefix(ids, other_ids, stop):
    pass


@pytest.mark.parametrize(
    "path, new, sentence",
    [
        (
            "trl.trainer.dpo_trainer.DPOTrainer._compute_loss",
            changed_loss,
            "`DPOTrainer._compute_loss` takes (model, inputs, return_outputs, weights) "
            "instead of (model, inputs, return_outputs)",
        ),
        ("trl.trainer.kto_trainer.KTOTrainer._precompute_ref_logps", None, "`KTOTrainer._precompute_ref_logps` is m"),
        ("trl.trainer.utils.get_config_model_id", None, "`trl.trainer.utils.get_config_model_id` is missing"),
        ("trl.data_utils.common_prefix_length", prefix, "`trl.data_utils.common_prefix_length` now requires `stop`"),
        ("trl.models.utils.disable_gradient_checkpointing", lambda model: None, "no longer takes `gradient_checkp"),
        ("transformers.Trainer._clip_grad_norm", None, "`DPOTrainer._clip_grad_norm` is missing"),
        ("transformers.masking_utils.eager_mask", None, "`transformers.masking_utils.eager_mask` is missing"),
        ("trl.trainer.dpo_trainer.DPOTrainer.__init__", lambda self, model: None, "`create_model_from_path`"),
    ],
)
@pytest.mark.parametrize("version", ["1.16.0", "1.17.0", "1.18.0.dev0"])
def test_what_has_moved_is_named(monkeypatch, installed, path, new, sentence, version):
    if new is None:
        monkeypatch.delattr(path)
    else:
        monkeypatch.setattr(path, new)
    installed(trl=version, transformers="5.30.0")
    with pytest.raises(VersionError) as caught:
        check_seams()
    text = str(caught.value)
    library = path.split(".")[0]
    assert text.startswith(f"{library} {version if library == 'trl' else '5.30.0'} does not fit")
    assert sentence in text or sentence in str(list(differences()))
    limits = {"trl": "'trl>=1.15,<1.17'", "transformers": "'transformers>=5.4,<5.25'"}
    assert text.endswith(f"pip install {limits[library]}.")


@pytest.mark.parametrize("version, warnings", [("1.15.0", 0), ("1.16.4", 0), ("1.17.0.dev0", 1), ("2.0.0", 1)])
def test_a_newer_one_that_fits_is_tried(installed, caplog, version, warnings):
    installed(trl=version)
    check_seams()
    assert len(caplog.records) == warnings
    assert all(f"trl {version} is newer than" in record.getMessage() for record in caplog.records)


def test_a_wrapped_method_is_not_a_moved_one(monkeypatch):
    monkeypatch.setattr(trl.DPOTrainer, "_compute_loss", lambda *args, **kwargs: None)
    assert not list(differences())


@pytest.mark.parametrize("library, version", [("trl", "1.14.2"), ("transformers", "4.57.0")])
def test_too_old_is_one_sentence(installed, library, version):
    installed(**{library: version})
    with pytest.raises(VersionError, match=rf"works with {library}>=\S+, but {library} {version} is installed: pip"):
        check_seams()


# -- the command line ------------------------------------------------------------------------------------------------

DOCTORED = """
import importlib.metadata, sys
real = importlib.metadata.version
importlib.metadata.version = lambda name: {version!r} if name == "trl" else real(name)
{change}
from trl_plus.cli import main
sys.argv = ["trl-plus", *{words!r}]
main()
"""
MOVED = "import trl.trainer.dpo_trainer as d\ndel d.DPOTrainer._prepare_dataset"


def doctored(version, change, *words):
    code = DOCTORED.format(version=version, change=change, words=[str(word) for word in words])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model_dir, pair_rows):
    folder = tmp_path_factory.mktemp("seams")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pair_rows(4)))
    values = {
        "method": "dpo", "model_name_or_path": tiny_model_dir, "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "out"), "max_steps": 1, "use_cpu": True, "report_generations": 0,
        "save_strategy": "no", "eval_strategy": "no",
    }  # fmt: skip
    (folder / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return folder / "r.yaml"


@pytest.mark.parametrize(
    "version, change, name",
    [("1.18.0.dev0", MOVED, "`DPOTrainer._prepare_dataset` is missing"), ("1.14.0", "", "trl 1.14.0 is installed")],
)
def test_the_command_line_shows_no_traceback(recipe, version, change, name):
    done = doctored(version, change, "train", recipe)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert name in line
    assert line.endswith("pip install 'trl>=1.15,<1.17'.")
    assert "Traceback" not in done.stderr + done.stdout


def test_a_newer_trl_trains(recipe):
    done = doctored("1.17.0", "", "train", recipe)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("trl 1.17.0 is newer than what trl_plus was tested with") == 1
