"""Every command in the pages would be understood: it exists, and so do its options, its keys and its recipes."""

import argparse
import contextlib
import re
import runpy
import sys

import pytest
import typer

from tests.docs.pages import ROOT, Code, all_code, commands
from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.errors import RecipeError
from trl_plus.recipes.keys import all_keys
from trl_plus.recipes.package_data import all_names, recipe_path, recipes_folder
from trl_plus.recipes.recipe import parse_overrides

CLI = typer.main.get_command(app)
CODE = all_code()
CALLS = [(code, words) for code in CODE for words in commands(code, "trl-plus")]
SCRIPTS = [
    (code, words[1:])
    for code in CODE
    for folder in ("benchmarks", "scripts", "tests")
    for words in commands(code, f"python {folder}/")
    if code.language is not None or len(words) > 2  # a text that names a script gives no arguments
]


def where(value):
    return value.id if isinstance(value, Code) else value[0]


def understand(words, only_named=False):
    """Parse the words of a command line as the entry point does, and run nothing.

    Args:
        only_named: whether the arguments may be missing, as where a text names a command.

    Raises:
        Exception: Typer's usage error, or RecipeError for a key or a recipe that does not exist.
    """
    command, rest = CLI, list(normalise(words[1:]))
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            raise RecipeError(f"There is no command {name}.")
        command = command.commands[name]
    if only_named and not rest:
        return
    if rest == ["--version"]:  # prints and exits as it is parsed
        return
    context = command.make_context(command.name, rest)
    unknown = set(parse_overrides(context.args)) - {*all_keys(), "method"}
    if unknown:
        raise RecipeError(f"There is no key {unknown}.")
    for parameter in ("recipe", "what", "name"):
        recipe = context.params.get(parameter)
        if recipe and re.fullmatch(r"[a-z][a-z0-9_]*|recipes/.*", recipe):
            recipe_path(recipe)


def test_there_are_commands_to_check():
    assert len(CALLS) > 60
    assert len(SCRIPTS) > 10
    assert {words[1] for _, words in CALLS} >= set(CLI.commands)


@pytest.mark.parametrize("code, words", CALLS, ids=where)
def test_command(code, words):
    with pytest.raises(RecipeError) if code.is_refused else contextlib.nullcontext():
        understand(words, only_named=code.language is None)


@pytest.mark.parametrize(
    "line, problem",
    [
        ("trl-plus trian quickstart", "no command trian"),
        ("trl-plus recipes lsit", "no command lsit"),
        ("trl-plus report runs/a --agianst runs/b", "No such option"),
        ("trl-plus merge runs/a", "Missing argument"),
        ("trl-plus merge runs/a merged --dtype float8", "Invalid value"),
        ("trl-plus train quickstart --dry-run --bta 2", "no key {'bta'}"),
        ("trl-plus train quickstart \\\n  lerning_rate=1", "no key {'lerning_rate'}"),
        ("trl-plus train quikstart", "no bundled recipe"),
        ("cd x && trl-plus train recipes/quikstart.yaml | tee log", "no bundled recipe"),
        ("trl-plus recipes copy quikstart my.yaml", "no bundled recipe"),
        ("trl-plus evaluate runs/a extra", "belongs to no key"),
    ],
)
@pytest.mark.parametrize("language", ["", "bash"])
def test_a_wrong_command_is_found(line, problem, language):
    (words,) = commands(Code("page.md", 1, language, line), "trl-plus")
    with pytest.raises(Exception) as refused:
        understand(words)
    assert problem in getattr(refused.value, "format_message", refused.value.__str__)()


def test_what_is_no_word_of_a_command():
    text = "$ trl-plus env > e.txt  # trl-plus none\ntrl-plus: 0.1\nrun `trl-plus none`\n$ FOO=1 trl-plus env | cat"
    assert commands(Code("page.md", 1, "console", text), "trl-plus") == [["trl-plus", "env"]] * 2


def test_every_option_is_on_its_command_s_page():
    """docs/COMMAND.md names every option of COMMAND, and docs/recipes.md those of the small commands."""
    for name, command in CLI.commands.items():
        page = f"{name}.md" if (ROOT / "docs" / f"{name}.md").exists() else "recipes.md"
        written = " ".join(code.text for code in CODE if code.page == page)
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            if option.startswith("-") and option != "--help":
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", written), f"docs/{page} does not describe {option}"


def test_options_of_a_command_s_page_exist():
    """The first cells of a table, as in `| --rows N |`, are options of the page's command."""
    checked = 0
    for name, command in CLI.commands.items():
        page = ROOT / "docs" / f"{name}.md"
        known = {option for parameter in command.params for option in parameter.opts}
        for cell in re.findall(
            r"^\| (`-.*?) \|", page.read_text(encoding="utf-8") if page.exists() else "", re.MULTILINE
        ):
            for option in re.findall(r"`(--?[a-z][\w-]*)", cell):
                assert option in known, f"docs/{name}.md describes {option}"
                checked += 1
    assert checked > 25


def test_every_recipe_that_is_named_ships():
    engines = {f"engines/{path.stem}" for path in (recipes_folder() / "engines").glob("*.yaml")}
    named = {
        (code.id, code.text) for code in CODE if re.fullmatch(r"(?!test_)\w+_(q?lora|full)|quickstart\w*", code.text)
    }
    launched = {(code.id, name) for code in CODE for name in re.findall(r"(?<!tests/)\bengines/\w+", code.text)}
    assert len(named) > 20
    assert len(launched) > 3
    assert not [(where, name) for where, name in named if name not in all_names()]
    assert not [(where, name) for where, name in launched if name not in engines]


class Parsed(Exception):
    """The arguments were understood."""


def parse_script(words, monkeypatch):
    """Run a script up to the point where it has read its arguments. One without argparse takes none."""
    path = ROOT / words[0]
    if "argparse" not in path.read_text(encoding="utf-8"):
        assert len(words) == 1, f"{words[0]} takes no arguments"
        return
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        parse_args(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(path), *words[1:]])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("code, words", SCRIPTS, ids=where)
def test_script(code, words, monkeypatch):
    parse_script(words, monkeypatch)


@pytest.mark.parametrize(
    "line", ["python benchmarks/preflight.py --rwos 1", "python benchmarks/compare.py --data a --methods SFT"]
)
def test_a_wrong_option_of_a_script_is_found(line, monkeypatch, capsys):
    (words,) = commands(Code("page.md", 1, "", line), "python benchmarks/")
    with pytest.raises(SystemExit):
        parse_script(words[1:], monkeypatch)
    assert "unrecognized arguments: --rwos" in (error := capsys.readouterr().err) or "invalid choice" in error


def test_an_argument_of_a_script_without_any_is_found(monkeypatch):
    with pytest.raises(AssertionError, match="takes no arguments"):
        parse_script(["benchmarks/exactness.py", "--cases", "1"], monkeypatch)
