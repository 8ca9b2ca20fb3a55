"""Local datasets: which files a path stands for, and which split each one is. Imports no data library."""

import re
from pathlib import Path

from trl_plus.errors import DataError

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")

# `pairs_train`, `test`, `train-00000-of-00002`
_SPLIT = re.compile(
    r"^(?P<dataset>.*?)[-_.]?(?P<split>train|test|validation|valid|val|dev|eval)(-\d+-of-\d+)?$", re.IGNORECASE
)
# `train_prefs-00000-of-00001`: a shard of the split that stands in front
_SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}$")
_TEST_WORDS = ("test", "validation", "valid", "val", "dev", "eval")


def missing_path(name: str) -> str:
    """A sentence on a path that does not exist; a relative one is told with its folder."""
    start = "" if Path(name).expanduser().is_absolute() else f", which is relative to {Path.cwd()}"
    return f"{name} does not exist: check the path{start}."


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
    """True if a dataset or model name can only mean a file or folder, and not a name on the hub."""
    return name.startswith(("./", "../", "/", "~")) or name in (".", "..") or Path(name).suffix in READERS


def is_local(name: str) -> bool:
    """True if a dataset name stands for local files."""
    path = as_path(name)
    return looks_like_path(name) or path.exists() or bool(_candidates(path))


def split_files(name: str, config: str | None = None) -> dict[str, list[Path]]:
    """The files of a local dataset by split ("train", "test", "validation", ...).

    A file is the split "train". A folder, or a path such as `data/pairs` beside which `data/pairs_train.jsonl` lies,
    has the splits that its file names end in. The splits of a folder that was downloaded are those that `datasets`
    finds: by its README, by the shards `SPLIT-00000-of-00001`, or by the names of files and folders.

    Args:
        config: a configuration that the README of a folder names.

    Raises:
        DataError: there is nothing to read, or the folder holds several datasets or configurations.
    """
    path = as_path(name)
    if path.is_dir() and _has_configs(path):
        return _discovered(path, config)
    if config is not None:
        raise DataError(
            f"`dataset_config: {config}` has no meaning for the local {name}, whose README.md names no configs: "
            "remove it."
        )
    files = _candidates(path)
    if path.is_dir() and (shards := _shards(path)):
        return shards
    if not files and path.is_dir() and any(file.suffix in READERS for file in path.rglob("*")):
        return _discovered(path, None)
    if not files:
        if path.is_dir():
            raise DataError(f"{name} holds no dataset: it has no file ending in {', '.join(READERS)}.")
        if path.exists():
            cure = "unpack it, for " if path.suffix in _PACKED else ""
            raise DataError(f"{name} is no dataset: {cure}its name must end in {', '.join(READERS)}.")
        raise DataError(missing_path(name))
    if path.is_file():
        return {"train": files}
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise DataError(f"{name} holds files of several kinds ({', '.join(sorted(suffixes))}): keep one kind.")
    matches = {file: _SPLIT.match(file.stem) for file in files}
    if not any(matches.values()):
        return _discovered(path, None) if len(files) > 1 and any(map(_names_a_split, files)) else {"train": files}
    datasets = {_dataset(file) for file in files}
    if len(datasets) > 1:
        names = ", ".join(sorted(str(path / dataset) for dataset in datasets))
        raise DataError(f"{name} holds several datasets: name one of {names}.")
    splits: dict[str, list[Path]] = {}
    for file, match in matches.items():
        splits.setdefault(match["split"].lower() if match else "train", []).append(file)
    return splits


def _has_configs(path: Path) -> bool:
    """True if the README of a folder says which files are which split."""
    readme = path / "README.md"
    if not readme.is_file():
        return False
    head = readme.read_text(encoding="utf-8", errors="replace")
    parts = head.split("---", 2)
    return not parts[0].strip() and len(parts) == 3 and bool(re.search(r"^configs:", parts[1], re.MULTILINE))


def _shards(path: Path) -> dict[str, list[Path]]:
    """The splits of a folder all of whose files are shards as the hub names them; empty for other folders."""
    for folder in (path, path / "data"):
        files = sorted(file for file in folder.iterdir() if file.suffix in READERS) if folder.is_dir() else []
        matches = {file: _SHARD.match(file.stem) for file in files}
        if files and all(matches.values()):
            splits: dict[str, list[Path]] = {}
            for file, match in matches.items():
                splits.setdefault(match["split"] if match else "", []).append(file)
            return splits
    return {}


def _names_a_split(file: Path) -> bool:
    """True if the name of a file has a word for a split in it, as `test_prefs`."""
    return any(word in ("train", *_TEST_WORDS) for word in re.split(r"[^a-z]+", file.stem.lower()))


def _discovered(path: Path, config: str | None) -> dict[str, list[Path]]:
    """The files by split as `datasets` finds them."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(path), name=config)
    except Exception as error:  # the README, patterns and modules each raise their own types
        known = _configs(path)
        if known and config not in known:
            asked = "needs a config" if config is None else f"has no config {config!r}"
            raise DataError(f"{path} {asked}: set `dataset_config` to {' or '.join(known)}.") from error
        said = (str(error).strip() or type(error).__name__).splitlines()
        raise DataError(f"The splits of {path} cannot be found: {' '.join(said)[:400]}") from error
    found = {str(split): [Path(file) for file in files] for split, files in builder.config.data_files.items()}
    strange = next((file for files in found.values() for file in files if file.suffix not in READERS), None)
    if strange is not None:
        raise DataError(f"{path}: {strange.name} cannot be read: its name must end in {', '.join(READERS)}.")
    return found


def _configs(path: Path) -> list[str]:
    """The configurations of a folder; none if its README is broken."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(str(path)))
    except Exception:  # the failure that this helps to explain is reported anyway
        return []


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
