"""Files of the package: the bundled recipes, and the model and data that `bundled:` values name."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import trl_plus
from trl_plus.errors import RecipeError

SCHEME = "bundled:"
BUNDLED = "bundled recipe "  # how the label of a bundled recipe begins
_PACKAGE = Path(trl_plus.__file__).parent
_ASSETS = ("quickstart",)  # folders of the package that `bundled:` may name


def recipes_folder() -> Path:
    """The folder of the bundled recipes: inside an installed package, or at the top of an editable checkout."""
    installed = _PACKAGE / "recipes" / "bundled"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the bundled recipes, without `.yaml`."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """File of the bundled recipe `name`, which may be written as `simpo_lora` or `recipes/simpo_lora.yaml`.

    Raises:
        RecipeError: there is none of that name.
    """
    stem = Path(name).stem
    if stem not in recipe_names():
        raise RecipeError(f"There is no bundled recipe {stem!r}{_nearest(stem)}: `trl-plus recipes list` shows all.")
    return recipes_folder() / f"{stem}.yaml"


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
    # recipes/NAME.yaml is how the README spells a bundled recipe; any other folder means a file of the user's
    if path.suffix in ("", ".yaml", ".yml") and str(path.parent) in (".", "recipes") and path.stem in recipe_names():
        return Source(recipe_path(path.stem), f"{BUNDLED}{path.stem}", bundled=True)
    bundled = "the name of a bundled recipe (`trl-plus recipes list`)"
    cures = f"{bundled}, or the `output_dir` of a run" if runs else f"or {bundled}"
    raise RecipeError(f"There is no file {argument}{_nearest(path.stem)}: give the path of a YAML file, {cures}.")


def _nearest(stem: str) -> str:
    close = get_close_matches(stem, recipe_names(), n=1)
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
