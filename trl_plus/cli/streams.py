"""If stdout closes early (`| head`, a closed terminal), drop the output and continue."""

import errno
import io
import os
import stat
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Let no write to standard output or error fail because nobody reads it any more. Call before heavy imports.

    A full disk behind `> file` stays an error.
    """
    if os.name != "posix":
        return
    sys.stdout = sys.__stdout__ = _lasting(sys.stdout)
    sys.stderr = sys.__stderr__ = _lasting(sys.stderr)


def _lasting(stream: Any) -> TextIO | None:
    """The same stream over a file that outlives its reader; None if the stream was closed from the beginning."""
    if stream is None:
        return None
    stream.flush()
    raw = _Lasting(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        # -u leaves the buffer out
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Lasting(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self._has_no_reader(error):
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for all that writes there, child processes and C libraries as well
        os.close(nowhere)
        return memoryview(data).nbytes

    def _has_no_reader(self, error: OSError) -> bool:
        """A pipe whose reader has gone, or a terminal that is closed."""
        terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return error.errno == errno.EPIPE or terminal
