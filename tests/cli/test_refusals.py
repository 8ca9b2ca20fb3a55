"""What a command refuses is refused with the right cure, and before torch is imported where files alone tell."""

import subprocess
import sys

import pytest

RECIPE = "method: simpo\nmodel_name_or_path: org/model\ndataset_name: org/data\noutput_dir: out\n"
REFUSED = """
import sys
from trl_plus.cli import main
try:
    main()
except SystemExit as end:
    print("torch" in sys.modules)
    raise
"""


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("evaluate out/missing", "There is no file out/missing: give the path of a YAML file, the name of a bundled "
         "recipe (`trl-plus recipes list`), or the `output_dir` of a run."),
        ("compare out/missing", "There is no folder out/missing: name the `output_dir` of a run, or a checkpoint"),
        ("sweep out/recipe.resolved.yaml beta=2", "Nothing is swept: give a key several values"),
        ("sweep out/recipe.resolved.yaml beta=2,much", "beta much: command line: `beta` must be a number, got 'much'."),
        ("sweep out/recipe.resolved.yaml betta=2,3", "command line: unknown key `betta`: did you mean `beta`?"),
        ("sweep out/recipe.resolved.yaml seed=1,2 beta=1,2 --seeds 2", "--seeds and several values of `seed` exclude"),
        ("report out/missing", "There is no folder out/missing: name the `output_dir` of a run."),
        ("merge out/missing new", "There is no folder out/missing: name the `output_dir` of a run, or a checkpoint"),
        ("merge out new", "out holds a full model: nothing has to be merged"),
        ("compare out --prompts nosuch.txt", "--prompts: nosuch.txt cannot be read (No such file or directory)"),
        ("compare --score nosuch.jsonl", "there is no nosuch.jsonl: it must be a sheet that --blind has written."),
    ],
)  # fmt: skip
def test_refused_without_torch(words, sentence, tmp_path):
    (tmp_path / "out").mkdir()
    for name, text in {"recipe.resolved.yaml": RECIPE, "config.json": "{}", "model.safetensors": ""}.items():
        (tmp_path / "out" / name).write_text(text)
    command = [sys.executable, "-c", REFUSED, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert sentence in done.stderr
    assert (done.returncode, done.stdout) == (2, "False\n")
