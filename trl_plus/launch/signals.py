"""The signals that ask a run to finish its step, save and end. Standard library only."""

import os
import signal
import stat
import threading
from contextlib import suppress

PARENT = "TRL_PLUS_PARENT"  # a pipe's descriptor: the process that started this one holds the other end open


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and a closed terminal, unless `nohup` says that a closed terminal is nothing."""
    stop = (signal.SIGINT, signal.SIGTERM)
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # Windows has none
        return stop
    return (*stop, signal.SIGHUP)


def leave_terminal(number: int) -> None:
    """After SIGHUP every write to the terminal fails: what would go there goes nowhere, and the run can still save."""
    if number != getattr(signal, "SIGHUP", None):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):  # it was closed before
            if stat.S_ISCHR(os.fstat(stream).st_mode):  # neither a file nor a pipe
                os.dup2(nowhere, stream)
    os.close(nowhere)


def end_with_parent() -> None:
    """Send this process SIGTERM when the one that started it is gone, also after SIGKILL, which nothing can pass on.

    Do nothing in a process that `processes.start` did not start.
    """
    descriptor = os.environ.pop(PARENT, None)
    if descriptor is None:
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(descriptor), 1)  # nothing is ever written: it returns when the other end is closed
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
