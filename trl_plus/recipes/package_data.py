"""Files of the package: the bundled recipes and their list, and the model and data that `bundled:` values name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rich.table import Table

import trl_plus
from trl_plus.errors import RecipeError
from trl_plus.recipes.yaml_text import read_file

SCHEME = "bundled:"
BUNDLED = "bundled recipe "  # how the label of a bundled recipe begins
PUBLISHED = "published"  # the folder, among the bundled recipes, of those that somebody has published
_PACKAGE = Path(trl_plus.__file__).parent
_ASSETS = ("quickstart",)  # folders of the package that `bundled:` may name


def recipes_folder() -> Path:
    """The folder of the bundled recipes: inside an installed package, or at the top of an editable checkout."""
    installed = _PACKAGE / "recipes" / "bundled"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the bundled recipes that are starting points, without `.yaml`."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def published_names() -> list[str]:
    """Names of the bundled recipes that somebody has published, without `.yaml`. None is a starting point's name."""
    return sorted(path.stem for path in (recipes_folder() / PUBLISHED).glob("*.yaml"))


def all_names() -> list[str]:
    """Names of all bundled recipes: the starting points, then the published ones."""
    return [*recipe_names(), *published_names()]


def recipe_path(name: str) -> Path:
    """File of the bundled recipe `name`, such as `simpo_lora`, `recipes/simpo_lora.yaml` or `published/tulu3_8b`.

    Raises:
        RecipeError: there is none of that name.
    """
    stem = Path(name).stem
    if stem not in all_names():
        raise RecipeError(f"There is no bundled recipe {stem!r}{_nearest(stem)}: `trl-plus recipes list` shows all.")
    return recipes_folder() / (PUBLISHED if stem in published_names() else "") / f"{stem}.yaml"


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a bundled recipe to a new file, or into a folder; returns the file's path.

    Raises:
        RecipeError: there is no such recipe, or the file exists.
    """
    source = recipe_path(name)
    target = destination / source.name if destination.is_dir() else destination
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:  # refuses a link that leads elsewhere, too
            file.write(source.read_bytes())
    except FileExistsError as error:
        raise RecipeError(f"{target} exists: name another file.") from error
    return target


@dataclass(frozen=True)
class Source:
    """The file of a recipe. `label` names it in messages."""

    path: Path
    label: str
    bundled: bool


def find_recipe(argument: str, runs: bool = False) -> Source:
    """The file that the argument of `trl-plus train` names: a path first, then a bundled recipe.

    Args:
        runs: the command takes the folder of a run as well, and its message names it.

    Raises:
        RecipeError: it is neither.
    """
    path = Path(argument).expanduser()
    if path.is_file():
        return Source(path, argument, bundled=False)
    if path.is_dir():
        raise RecipeError(f"{argument} is a folder: name the YAML file in it.")
    if _names_bundled(path):
        return Source(recipe_path(path.stem), f"{BUNDLED}{path.stem}", bundled=True)
    bundled = "the name of a bundled recipe (`trl-plus recipes list`)"
    cures = f"{bundled}, or the `output_dir` of a run" if runs else f"or {bundled}"
    raise RecipeError(f"There is no file {argument}{_nearest(path.stem)}: give the path of a YAML file, {cures}.")


def _names_bundled(path: Path) -> bool:
    """True if a path is a way to write the name of a bundled recipe: any other folder means a file of the user's."""
    folder = path.parent.as_posix()
    names = all_names() if folder == "." else []
    names += recipe_names() if folder == "recipes" else []
    names += published_names() if folder in (PUBLISHED, f"recipes/{PUBLISHED}") else []
    return path.suffix in ("", ".yaml", ".yml") and path.stem in names


def _nearest(stem: str) -> str:
    close = get_close_matches(stem, all_names(), n=1)
    return f", but a bundled recipe `{close[0]}`" if close else ""


def resolve(value: str) -> str:
    """The path that `bundled:quickstart/model` stands for; any other value is returned as it is.

    Raises:
        RecipeError: the value leaves the package's own data.
    """
    if not value.startswith(SCHEME):
        return value
    relative = value.removeprefix(SCHEME)
    target = (_PACKAGE / relative.replace("\0", "")).resolve()
    if "\0" in value or not any(target.is_relative_to((_PACKAGE / asset).resolve()) for asset in _ASSETS):
        raise RecipeError(f"`{value}` is not part of the package: {SCHEME} values begin with {SCHEME}{_ASSETS[0]}/.")
    return str(target)


# -- tables of the bundled recipes ----------------------------------------------------------------------------------


_GROUPS = (
    ("Starting points", recipe_names),
    ("Published recipes: figures of others, each with its source", published_names),
)


def recipe_tables() -> Iterator[Table]:
    """Name, method and first header line of every bundled recipe, in one table for each group."""
    names = [list_names() for _, list_names in _GROUPS]
    width = max(len(name) for group in names for name in group)
    for (title, _), group in zip(_GROUPS, names, strict=True):
        yield _table(title, group, width)


def _table(title: str, names: Sequence[str], width: int) -> Table:
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("name", overflow="fold", no_wrap=True, min_width=width)
    table.add_column("method", overflow="fold", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for name in names:
        path = recipe_path(name)
        method = read_file(path, name).values["method"]
        headline = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        table.add_row(name, method, headline)
    return table
