"""Start the processes of a launch on this machine, pass signals on to them, and return one exit code.

accelerate prepares the environment. The processes are started here and not by torch's elastic agent, which turns every
exit code into 1 and kills what has not ended 30 seconds after a signal: too soon for a process that saves a checkpoint.
"""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from trl_plus.launch.engines import launcher_arguments
from trl_plus.launch.request import ENGINE, PROCESSES, Launch

INTERRUPTED = 130
PARENT = "TRL_PLUS_PARENT"  # a pipe's descriptor: the process that started this one holds the other end open
_POLL = 0.1  # seconds
_GRACE = 30.0  # seconds the others have after one process failed: they may wait for it forever


def environment_of(launch: Launch) -> dict[str, str]:
    """The environment that all processes of this machine share, as `accelerate launch` would make it."""
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = launcher_arguments(launch.config)
    arguments.num_processes, arguments.num_machines = launch.processes, launch.machines
    arguments.machine_rank, arguments.main_process_ip = launch.machine_rank, launch.address
    arguments.main_process_port = launch.port or 0  # 0: any free one
    cores = (os.cpu_count() or 1) // launch.local_processes if launch.cpu else 1
    arguments.num_cpu_threads_per_process = os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))
    if launch.engine == "deepspeed":
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    environment["MASTER_ADDR"] = launch.address or "127.0.0.1"
    environment["MASTER_PORT"] = str(arguments.main_process_port)
    environment["WORLD_SIZE"] = str(launch.processes)
    environment["LOCAL_WORLD_SIZE"] = str(launch.local_processes)
    environment[PROCESSES], environment[ENGINE] = str(launch.processes), launch.engine
    return {key: value for key, value in environment.items() if key != "ACCELERATE_USE_CPU"} | (
        {"ACCELERATE_USE_CPU": "true"} if launch.cpu else {}
    )


def start(launch: Launch, words: Sequence[str]) -> int:
    """Run `trl-plus train` with these words in every process of this machine, and wait for all of them.

    Returns:
        The exit code: that of the first process that failed (1 if it was killed), 130 if they were interrupted, or 0.
    """
    shared = environment_of(launch)
    command = [sys.executable, "-m", "trl_plus.cli", "train", *words]
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        leave_terminal(number)
        received.append(number)
        _send(processes, number)

    handlers = {number: signal.signal(number, pass_on) for number in stopping_signals()}
    watched, held = os.pipe()  # `held` closes when this process ends, however it ends
    watching: dict[str, Any] = {"pass_fds": [watched]} if os.name == "posix" else {}
    shared |= {PARENT: str(watched)} if watching else {}
    try:
        for local in range(launch.local_processes):
            rank = launch.machine_rank * launch.local_processes + local
            numbered = shared | {"LOCAL_RANK": str(local), "RANK": str(rank)}
            # a session of its own: Ctrl-C reaches this process only, which passes it on once
            processes.append(subprocess.Popen(command, env=numbered, start_new_session=True, **watching))
        for number in received:  # came while they were being started
            _send(processes, number)
        return _wait(processes, received)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        os.close(watched)
        os.close(held)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait(processes: Sequence["subprocess.Popen[bytes]"], received: Sequence[int]) -> int:
    """Wait without a limit, also after a signal; with one once a process failed, since the others may wait for it."""
    failure: int | None = None
    deadline = None
    while None in [process.poll() for process in processes]:  # a list: every process is polled
        if deadline is None and (failure := _first_failure(processes, received)) is not None:
            deadline = time.monotonic() + _GRACE
            _send(processes, signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(_POLL)
    if failure is None:
        failure = _first_failure(processes, received)
    if failure is not None:
        return failure
    return INTERRUPTED if any(process.returncode for process in processes) else 0


def _first_failure(processes: Sequence["subprocess.Popen[bytes]"], received: Sequence[int]) -> int | None:
    """The exit code of a process that failed. One that a signal stopped before it could listen was interrupted."""
    interrupted = {0, INTERRUPTED, *(-number for number in received)}
    for index, process in enumerate(processes):
        code = process.returncode
        if code is not None and code not in interrupted:
            if code < 0:
                print(f"error: process {index} of this machine was killed by signal {-code}.", file=sys.stderr)
            return code if code > 0 else 1
    return None


def _send(processes: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and a closed terminal, unless `nohup` ignores a closed terminal."""
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

    Do nothing in a process that `start` did not start.
    """
    descriptor = os.environ.pop(PARENT, None)
    if descriptor is None:
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(descriptor), 1)  # nothing is ever written: it returns when the other end is closed
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
