"""The folder of a run: one run at a time in it, and an earlier one moved aside. Imports neither torch nor TRL."""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.recipes.recipe import RESOLVED, Recipe
from trl_plus.runs.checkpoint_files import checkpoints, put_back
from trl_plus.runs.journal import JOURNAL, METRICS, began_at

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The files of a run's folder. The hub's upload leaves out what begins with an underscore
LOG, PREFLIGHT, EVALUATION, REPORT, CARD, SCORES = (
    "metrics.jsonl", "preflight.json", "evaluation.json", "report.html", "README.md", "held_out_scores.json",
)  # fmt: skip
LOCK, _TENSORBOARD = "_running", "runs"


# -- the lock -------------------------------------------------------------------------------------------------------
# It is the system's, on a file: it ends with the process that holds it, however that ends, and forked workers do not
# inherit it. Over NFS it holds between machines. The text of the file is for the reader of the message.


@contextmanager
def claimed(folder: Path, say: Callable[[Any], None]) -> Iterator[None]:
    """Lock the folder against other runs. Only the main process enters it, for its whole run.

    Args:
        folder: made if need be.
        say: told if the file system (or Windows) has no locks: the run continues without one.

    Raises:
        RecipeError: another run holds the folder, or it cannot be made.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"`output_dir`: cannot write to {folder}: {error.strerror}. Name another one.") from error
    try:
        held = _lock(folder / LOCK)
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        say(f"A second run in {folder} would not be noticed: its file system takes no lock ({why}).")
        held = None
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
            os.close(held)
        if new:
            with suppress(OSError):  # the run wrote something
                folder.rmdir()


def running(folder: Path) -> bool | None:
    """Return True if a run holds the folder's lock, False if it died on this machine, None if that cannot be known.

    Takes no lock, so that no run is refused meanwhile.
    """
    path = folder / LOCK
    try:
        file = path.open("rb")
    except OSError:
        return None
    with file:
        try:
            os.lockf(file.fileno(), os.F_TEST, 0)
            host = json.loads(file.read() or b"{}").get("host")
        except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two
            return True
        except (OSError, ValueError, AttributeError):  # no locks on this file system or system, or half a text
            return None
    return False if host == socket.gethostname() else None


def _lock(path: Path) -> int:
    """The open file, locked and with our name in it."""
    if fcntl is None:
        raise NotImplementedError("no fcntl")
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_named(file, path):  # the run before us deleted it between our two calls
                os.close(file)
                continue
            os.ftruncate(file, 0)
            since = datetime.now(UTC).isoformat(timespec="seconds")
            os.write(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode())
        except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two
            os.close(file)
            raise RecipeError(_refusal(path)) from None
        except OSError:
            os.close(file)
            raise
        return file


def _is_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _refusal(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock, and has not written its name yet
        who = "it began this moment"
    return (
        f"`output_dir`: another run is training in {path.parent} ({who}): let it end, stop it, or name another "
        f"`output_dir`; if its machine is gone, delete {path}."
    )


# -- an earlier run -------------------------------------------------------------------------------------------------

_EARLIER = "_earlier"
_PART = "_earlier.part"  # a move that is not complete, or that was killed
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "training_args.bin")
_MODEL = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json", "config.json", "generation_config.json",
)  # fmt: skip
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
)  # fmt: skip
# The recipe goes last: while it is there, the folder still holds a run
_RECORDS = (SCORES, EVALUATION, PREFLIGHT, LOG, METRICS, JOURNAL, RESOLVED)


def holds_run(folder: Path) -> bool:
    """True if a folder holds an earlier run. A journal alone is the trace of a refused one, which saved nothing."""
    signs = (RESOLVED, METRICS)
    return any((folder / name).is_file() for name in signs) or bool(checkpoints(folder)) or (folder / _PART).is_dir()


def refuse_moved(recipe: Recipe, folder: Path) -> None:
    """Refuse a fresh run that reads files which it would move away or overwrite.

    Raises:
        RecipeError: its base model is in `output_dir` itself, or a value names a file of the earlier run there.
    """
    model = Path(str(recipe["model_name_or_path"])).expanduser()
    if model.is_dir() and model.resolve() == folder.resolve():
        raise RecipeError(
            f"`model_name_or_path` is `output_dir`, {folder}, and would be overwritten: name another `output_dir`."
        )
    moved = {path.resolve() for path in _written(folder, not recipe["use_peft"])} if holds_run(folder) else set()
    for name, text in _texts(recipe.values):
        if moved & _with_parents(text):
            raise RecipeError(
                f"`{name}` is {text}, a part of the earlier run in {folder} that this one would move away: name "
                "another `output_dir`."
            )


def set_aside(folder: Path, full: bool) -> Path | None:
    """Move an earlier run to a separate folder, which is a run as well. Returns it, or None if there is no run.

    If it is killed, nothing is lost: the next call continues the move.

    Args:
        full: the run that follows writes a whole model.
    """
    put_back(folder)
    if not holds_run(folder):
        return None
    part, paths = folder / _PART, _written(folder, full)
    if any((part / path.relative_to(folder)).exists() for path in paths):
        _name(part)  # of a move that was killed; another run was here since
    part.mkdir(exist_ok=True)
    for path in paths:
        target = part / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        os.rename(path, target)
    with suppress(OSError):  # there are others of the user's, or none was there
        (folder / _TENSORBOARD).rmdir()
    return _name(part)


def _with_parents(text: str) -> set[Path]:
    """The path that a text names and the folders above it; empty if it cannot be a path."""
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        return set()
    return {path, *path.parents}


def _name(part: Path) -> Path:
    number = next(n for n in range(1, 1_000_000) if not (part.parent / f"{_EARLIER}-{n}").exists())
    return part.rename(part.parent / f"{_EARLIER}-{number}")


def _written(folder: Path, full: bool) -> list[Path]:
    """The files of the earlier run, in the order in which they are moved."""
    from trl_plus.runs.model_card import is_ours

    patterns = list(_ADAPTER)
    if full or _was_full(folder):  # beside an adapter they are somebody's base model
        patterns += _MODEL
    if any((folder / name).is_file() for name in _TOKENIZER[-2:]):
        patterns += _TOKENIZER
    found = [*checkpoints(folder)[::-1], *_tensorboard(folder)]
    found += [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if (folder / "ref" / "adapter_config.json").is_file():  # PEFT's folder for the reference adapter
        found.append(folder / "ref")
    card, report = folder / CARD, folder / REPORT
    found += [card] if card.is_file() and is_ours(card) else []
    if report.is_file() and "<title>Report: " in report.read_text(encoding="utf-8", errors="replace")[:4096]:
        found.append(report)
    return found + [folder / name for name in _RECORDS if (folder / name).is_file()]


def _was_full(folder: Path) -> bool:
    try:
        return re.search(r"^use_peft: true\b", (folder / RESOLVED).read_text(encoding="utf-8"), re.MULTILINE) is None
    except (OSError, ValueError):
        return not (folder / "adapter_config.json").is_file()


def _tensorboard(folder: Path) -> list[Path]:
    """The event folder of the run, known by when it began (`trackers.run_id`)."""
    began = began_at(folder / JOURNAL)
    return [] if began is None else sorted((folder / _TENSORBOARD).glob(f"*-{began:%Y%m%d-%H%M%S}"))


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text among the values of a recipe, with its key."""
    for name, value in values.items():
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                yield name, one
            elif isinstance(one, Mapping):
                waiting += one.values()
            elif isinstance(one, list | tuple):
                waiting += one
