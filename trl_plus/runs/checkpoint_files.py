"""Checkpoint folders as files: written atomically, found, and checked for completeness. Imports no torch.

A save goes into UNFINISHED inside the output folder and is renamed when it is whole and on the disk. A folder that is
deleted is first renamed into UNFINISHED too, so whatever is called `checkpoint-N` was complete when it got that name.
One that is replaced waits in UNFINISHED until the new one has its name; `put_back` returns it if that never came.
"""

import json
import os
import re
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

UNFINISHED = "_unfinished"  # the hub's upload leaves out what begins with an underscore
REPLACED = "replaced-"  # before the name of a folder that makes room for a newer one
STATE = "trainer_state.json"
LATEST = "latest"  # of DeepSpeed: it holds the name of the folder of the newest shards
_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ZIPPED = ("optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin")


@dataclass
class Found:
    """The newest complete checkpoint of a folder, or None; and why each newer or half-written one was passed over."""

    newest: Path | None = None
    passed_over: list[str] = field(default_factory=list)


def step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def checkpoints(folder: Path) -> list[Path]:
    """The folders named `checkpoint-N`, highest step first, complete or not."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) >= 0), key=step_of)[
        ::-1
    ]


def find(folder: Path) -> Found:
    """Find the newest complete checkpoint in an output folder."""
    found = Found()
    put_back(folder)
    for path in sorted((folder / UNFINISHED).glob("checkpoint-*")):
        found.passed_over.append(f"{path}: the run was killed while it was being saved")
    for path in checkpoints(folder):
        problem = problem_of(path)
        if problem is None:
            found.newest = path
            break
        found.passed_over.append(f"{path}: {problem}")
    return found


def problem_of(folder: Path) -> str | None:
    """The reason why a checkpoint cannot be resumed from, as half a sentence; None if it is complete."""
    try:
        int(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])
    except FileNotFoundError:
        return f"{STATE} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE} cannot be read"
    return _sharded_problem(folder) if _is_sharded(folder) else _weights_problem(folder) or _state_problem(folder)


def _is_sharded(folder: Path) -> bool:
    """True if DeepSpeed or FSDP wrote the weights and the optimizer, in their own formats."""
    return any(next(folder.glob(pattern), None) for pattern in ("global_step*", "pytorch_model_fsdp*", "optimizer_*"))


def _sharded_problem(folder: Path) -> str | None:
    if next(folder.glob("global_step*"), None) is not None:
        latest = folder / LATEST  # DeepSpeed writes it last
        if not latest.is_file() or not (folder / latest.read_text(encoding="utf-8").strip()).is_dir():
            return "DeepSpeed's file `latest` is missing or names no folder"
    return _rng_problem(folder)


def _weights_problem(folder: Path) -> str | None:
    names = [name for name in _WEIGHTS if (folder / name).is_file()]
    # PEFT writes an adapter that is not called "default" into a folder of its name
    names += [str(path.relative_to(folder)) for path in folder.glob("*/adapter_model.*")]
    for index in _INDEXES:
        if (folder / index).is_file():
            try:
                names += set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError):
                return f"{index} cannot be read"
    if not names:
        return "it holds no weights"
    for name in sorted(names):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if name.endswith(".safetensors") and not _whole_safetensors(folder / name):
            return f"{name} is cut short"
    return None


def _whole_safetensors(path: Path) -> bool:
    """True if the file has the length that its header gives."""
    try:
        with safe_open(path, framework="np"):
            return True
    except (OSError, SafetensorError):
        return False


def _state_problem(folder: Path) -> str | None:
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (folder / name).is_file():
            return f"{name} is missing (`save_only_model` leaves it out)"
    for name in _ZIPPED:
        if (folder / name).is_file() and not zipfile.is_zipfile(folder / name):
            return f"{name} is cut short"
    return _rng_problem(folder)


def _rng_problem(folder: Path) -> str | None:
    files = sorted(folder.glob("rng_state*.pth"))
    if not files:
        return "rng_state.pth is missing"
    for path in files:
        if not zipfile.is_zipfile(path):
            return f"{path.name} is cut short"
    return None


# -- writing ----------------------------------------------------------------------------------------------------


def clear_unfinished(folder: Path) -> list[str]:
    """Delete what killed saves and deletions left behind; returns the names of the checkpoints among it."""
    put_back(folder)
    left = sorted(path.name for path in (folder / UNFINISHED).glob("checkpoint-*"))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return left


def put_in_place(part: Path, final: Path) -> None:
    """Rename a finished folder to its name, after all of it is on the disk.

    One of that name is renamed first and deleted last: a process killed in between loses neither (`put_back`).
    """
    for path in part.rglob("*"):
        _sync(path)
    _sync(part)
    old = part.parent / f"{REPLACED}{final.name}"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(part, final)
    _sync(final.parent)
    _discard(old)


def put_back(folder: Path) -> None:
    """Restore the name of a checkpoint that a killed run had renamed to replace it, and had not replaced."""
    for old in (folder / UNFINISHED).glob(f"{REPLACED}checkpoint-*"):
        final = folder / old.name.removeprefix(REPLACED)
        if not final.exists():
            with suppress(OSError):  # another process was faster, or nothing can be written here
                os.rename(old, final)


def merge_into(part: Path, folder: Path) -> None:
    """Move every file of `part` to the same place in `folder`: none of them is ever half-written there.

    DeepSpeed's file `latest` names the folder of its shards. It is moved last, so it never names some of them only.
    Weights of an earlier model cut into other files are deleted: they would be loaded instead.
    """
    files = [path for path in part.rglob("*") if path.is_file()]
    files.sort(key=lambda path: path.name == LATEST)
    for path in files:
        _sync(path)
    for path in files:
        target = folder / path.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    names = {str(path.relative_to(part)) for path in files}
    weights = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
    if names & {*weights[:2], LATEST}:
        for stale in {path for pattern in weights for path in folder.glob(pattern) if path.name not in names}:
            stale.unlink()
    shutil.rmtree(part, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint; a process killed meanwhile leaves nothing half-deleted under its name."""
    trash = folder.parent / UNFINISHED / f"deleted-{folder.name}"
    trash.parent.mkdir(exist_ok=True)
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    _discard(trash)


def _discard(trash: Path) -> None:
    """Delete a folder inside UNFINISHED, and UNFINISHED if that was all it held."""
    shutil.rmtree(trash, ignore_errors=True)
    with suppress(OSError):
        trash.parent.rmdir()


def rotate(folder: Path, newest: Path, best: str | None, limit: int | None) -> None:
    """Delete the oldest checkpoints until `limit` are left; never the one just saved nor the best one."""
    if limit is None or limit <= 0:
        return
    kept = {newest.resolve()} | ({Path(best).resolve()} if best is not None else set())
    by_age = sorted(checkpoints(folder), key=lambda path: (path.stat().st_mtime_ns, step_of(path)))
    too_many = len(by_age) - max(limit, sum(path.resolve() in kept for path in by_age))
    for path in [path for path in by_age if path.resolve() not in kept][: max(0, too_many)]:
        remove(path)


def _sync(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
