"""Two runs into one folder at once: the second is refused in one sentence. A killed run blocks nothing."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from trl_plus.errors import RecipeError
from trl_plus.runs import folder as module
from trl_plus.runs.folder import LOCK, claimed

HOLD = """
import os, sys, time
from pathlib import Path
from trl_plus.runs.folder import claimed
with claimed(Path(sys.argv[1]), print):
    if os.fork() == 0:  # as a worker of a data loader, which a killed run leaves behind
        print("held", flush=True)
        time.sleep(3)
        os._exit(0)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(folder):
    said = []
    with claimed(folder, said.append):
        return said


def test_the_second_run_is_refused_and_told_who_runs(holder, tmp_path):
    with pytest.raises(RecipeError) as refused:
        take(tmp_path / "out")
    text = str(refused.value)
    assert f"process {holder.pid} on {socket.gethostname()}, since {time.strftime('%Y', time.gmtime())}-" in text
    assert f"another run is training in {tmp_path / 'out'}" in text
    assert "name another `output_dir`" in text
    assert text.count("\n") == 0


def test_a_killed_run_blocks_nothing(holder, tmp_path):
    """Not even while a worker that it has forked lives on."""
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert (tmp_path / "out" / LOCK).exists()
    assert take(tmp_path / "out") == []
    assert not (tmp_path / "out" / LOCK).exists()


def test_who_has_not_written_its_name_yet(holder, tmp_path):
    os.truncate(tmp_path / "out" / LOCK, 0)
    with pytest.raises(RecipeError, match="it began this moment"):
        take(tmp_path / "out")


def test_deleting_the_file_frees_the_folder(holder, tmp_path):
    """The way out where a machine crashed and a file server still keeps its lock."""
    (tmp_path / "out" / LOCK).unlink()
    assert take(tmp_path / "out") == []


def test_a_file_that_another_run_deletes_meanwhile_is_no_claim(tmp_path, monkeypatch):
    lockf, calls = module.fcntl.lockf, []

    def slow(file, how):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        return lockf(file, how)

    monkeypatch.setattr(module.fcntl, "lockf", slow)
    with claimed(tmp_path, print):
        assert len(calls) == 2
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(number, tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "lockf", refuse)
    (said,) = take(tmp_path)
    assert os.strerror(number) in said
    assert "would not be noticed" in said


def test_windows_is_said_and_used(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    assert len(take(tmp_path)) == 1


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="refused"), claimed(tmp_path / "new", print):
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
