"""One run at a time in an output folder. Standard library only.

The lock is the system's, on a file: it ends with the process that holds it, however that ends, and forked workers do
not inherit it. Over NFS it holds between machines. What the file says is for the reader of the message.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "_running"  # the hub's upload leaves out what begins with an underscore


@contextmanager
def claimed(folder: Path, say: Callable[[Any], None]) -> Iterator[None]:
    """While it is entered, no other run begins in the folder. Entered by the main process only, for all of its run.

    Args:
        folder: made if need be.
        say: told where the file system (or Windows) has no locks: the run goes on without one.

    Raises:
        RecipeError: another run holds the folder, or it cannot be made.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"`output_dir`: cannot write to {folder}: {error.strerror}. Name another one.") from error
    try:
        held = _lock(folder / FILE)
    except (OSError, NotImplementedError) as error:
        say(f"A second run in {folder} would not be noticed: its file system takes no lock ({_reason(error)}).")
        held = None
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                (folder / FILE).unlink()
            os.close(held)
        if new:
            with suppress(OSError):  # the run wrote something
                folder.rmdir()


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
            os.write(file, json.dumps(_ourselves()).encode())
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


def _ourselves() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
