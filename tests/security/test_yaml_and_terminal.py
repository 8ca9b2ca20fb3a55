"""A recipe cannot run code, hang, or leave its folder; text of a dataset cannot drive the terminal."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from trl_plus.comparison.prompts import generations_table
from trl_plus.errors import RecipeError
from trl_plus.recipes.package_data import copy_recipe, recipe_path
from trl_plus.recipes.recipe import load_recipe
from trl_plus.recipes.yaml_text import parse, parse_value
from trl_plus.runs.journal import Sample
from trl_plus.ui.console import say

HEAD = "method: simpo\nmodel_name_or_path: org/model\ndataset_name: org/data\noutput_dir: out\n"
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text, words",
    [
        ("beta: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor"),
        ("beta: !!python/name:os.system", "could not determine a constructor"),
        (BOMB, "aliases written out"),
        ("beta: &a [*a]", "stands for what it is in"),
        ("beta: " + "[" * 50_000, "nested deeper than"),
        ("beta: " + "9" * 5000, "not of its type"),
        ("beta: 2024-13-45", "not of its type"),
        ("run_name: " + "x" * 300_000, "larger than"),
    ],
)
def test_hostile_yaml_is_one_sentence(tmp_path, monkeypatch, text, words, starts_of):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(HEAD + text)
    start = time.process_time()
    with pytest.raises(RecipeError, match=words):
        load_recipe("r.yaml")
    assert starts_of(seconds=time.process_time() - start) < 2000
    assert not Path("owned").exists()


def test_hostile_overrides_stay_text():
    for text in ("!!python/object/apply:os.system [ls]", "[" * 5000, "{" + BOMB, "9" * 5000):
        assert parse_value(text) == text


def test_an_alias_is_fine():
    assert parse("a: &x [1, 2]\nb: *x", "r").values == {"a": [1, 2], "b": [1, 2]}


def test_remote_code_is_off_and_said_where_on(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(HEAD)
    recipe = load_recipe(str(path))
    assert recipe["trust_remote_code"] is False
    assert not recipe.notes
    for word in ("trust_remote_code=true", "model_init_kwargs={trust_remote_code: true}"):
        assert "code that comes with org/model will be run" in " ".join(load_recipe(str(path), [word]).notes)


def test_nothing_is_reported_or_uploaded_unless_the_recipe_says_so(tmp_path):
    (tmp_path / "r.yaml").write_text(HEAD)
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert recipe["report_to"] in ("none", ["none"])
    assert recipe["push_to_hub"] is False


@pytest.mark.parametrize(
    "value", ["bundled:../../etc", "bundled:/etc/passwd", "bundled:quickstart/../../x", "bundled:\0"]
)
def test_bundled_stays_in_the_package(tmp_path, value):
    (tmp_path / "r.yaml").write_text(HEAD.replace("org/model", repr(value).replace("'", '"')))
    with pytest.raises(RecipeError, match="not part of the package"):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("value", ['"a\\0b"', "~nobody_of_this_name/x", "./" + "x" * 5000])
@pytest.mark.parametrize("key", ["output_dir", "dataset_name", "model_name_or_path"])
def test_impossible_paths_are_one_sentence(tmp_path, key, value):
    lines = [line for line in HEAD.splitlines() if not line.startswith(key)]
    (tmp_path / "r.yaml").write_text("\n".join([*lines, f"{key}: {value}"]))
    if key != "output_dir" and value.startswith('"'):
        return  # a hub id is not looked up
    with pytest.raises(RecipeError, match=key):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_shown_recipe_is_a_bundled_one():
    assert recipe_path("../../etc/simpo_lora") == recipe_path("simpo_lora")
    with pytest.raises(RecipeError, match="no bundled recipe"):
        recipe_path("../../etc/passwd")


def test_a_copy_overwrites_nothing_and_follows_no_link(tmp_path):
    (tmp_path / "link.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(RecipeError, match="exists"):
        copy_recipe("simpo_lora", tmp_path / "link.yaml")
    assert not (tmp_path / "elsewhere.yaml").exists()


def test_terminal_shows_and_does_not_obey(capsys):
    hostile = "[red]x[/red] \x1b]0;owned\x07 \x1b[2J \x9b31m \u202e"
    say(hostile)
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(generations_table([Sample(hostile, hostile, hostile)]))
    for shown in (capsys.readouterr().out, console.file.getvalue()):
        assert "[red]x[/red]" in shown
        assert "\\x1b[2J" in shown
        assert not {"\x07", "\x9b", "\u202e"} & set(shown)
        assert "\x1b[2J" not in shown
