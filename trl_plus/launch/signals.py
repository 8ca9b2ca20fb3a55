"""The signals that ask a run to finish its step, save and end. Standard library only."""

import os
import signal
import stat
from contextlib import suppress


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
