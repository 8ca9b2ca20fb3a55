"""Local datasets: which files a path stands for, and which split each one is. Imports no data library."""

import re
from pathlib import Path

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")

# `pairs_train`, `test`, `train-00000-of-00002`
_SPLIT = re.compile(
    r"^(?P<dataset>.*?)[-_.]?(?P<split>train|test|validation|valid|val|dev|eval)(-\d+-of-\d+)?$", re.IGNORECASE
)
_CONFIGS = re.compile(r"---\r?\n(?:(?!---).*\r?\n)*?configs:")  # in the YAML block of a dataset card
_TEST_WORDS = ("test", "validation", "valid", "val", "dev", "eval")


class DataError(ValueError):
    """The data cannot be used as it is; the text says what is wrong and names the cure."""


def as_path(name: str) -> Path:
    """The path that a text names, `~` expanded.

    Raises:
        DataError: it can name no file: a NUL character, an unknown user behind `~`, a name too long for the system.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{name[:80]!r} can be no path: {getattr(error, 'strerror', None) or error}.") from error
    return path


def looks_like_path(name: str) -> bool:
    """Whether a dataset or model name can only mean a file or folder, and not a name on the hub."""
    return name.startswith(("./", "../", "/", "~")) or name in (".", "..") or Path(name).suffix in READERS


def is_local(name: str) -> bool:
    """Whether a dataset name stands for local files."""
    path = as_path(name)
    return looks_like_path(name) or path.exists() or bool(_candidates(path))


def is_dataset_folder(path: Path) -> bool:
    """True for a local folder in the layout of the hub: its README.md has `configs`, or its files lie in subfolders."""
    if not path.is_dir():
        return False
    card = path / "README.md"
    if card.is_file() and _CONFIGS.match(card.read_text(encoding="utf-8", errors="replace")):
        return True
    return not _candidates(path) and any(file.suffix in READERS for file in path.glob("*/**/*"))


def split_files(name: str) -> dict[str, list[Path]]:
    """The files of a local dataset by split ("train", "test", "validation", ...).

    A file is the split "train". A folder, or a path such as `data/pairs` beside which `data/pairs_train.jsonl` lies,
    has the splits that its file names end in; if none has such an ending, all are "train".

    Raises:
        DataError: there is nothing to read, or the folder holds several datasets.
    """
    path = as_path(name)
    files = _candidates(path)
    if not files:
        if path.is_dir():
            raise DataError(f"{name} holds no dataset: it has no file ending in {', '.join(READERS)}.")
        if path.exists():
            cure = "unpack it, for " if path.suffix in _PACKED else ""
            raise DataError(f"{name} is no dataset: {cure}its name must end in {', '.join(READERS)}.")
        raise DataError(f"{name} does not exist: check the path, which is relative to {Path.cwd()}.")
    if path.is_file():
        return {"train": files}
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise DataError(f"{name} holds files of several kinds ({', '.join(sorted(suffixes))}): keep one kind.")
    matches = {file: _SPLIT.match(file.stem) for file in files}
    if not any(matches.values()):
        return {"train": files}
    datasets = {_dataset(file) for file in files}
    if len(datasets) > 1:
        names = ", ".join(sorted(str(path / dataset) for dataset in datasets))
        raise DataError(f"{name} holds several datasets: name one of {names}.")
    splits: dict[str, list[Path]] = {}
    for file, match in matches.items():
        splits.setdefault(match["split"].lower() if match else "train", []).append(file)
    return splits


def test_split(available: list[str], wanted: str) -> str | None:
    """The held-out split: the one asked for, else the first of the usual names (test, validation, ...)."""
    return next((name for name in (wanted, *_TEST_WORDS) if name in available), None)


def _candidates(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in READERS else []
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in READERS)
    if not path.parent.is_dir():
        return []
    return sorted(
        file
        for file in path.parent.iterdir()
        if file.suffix in READERS and _SPLIT.match(file.stem) and _dataset(file) == path.name
    )


def _dataset(file: Path) -> str:
    match = _SPLIT.match(file.stem)
    return match["dataset"] if match else file.stem
