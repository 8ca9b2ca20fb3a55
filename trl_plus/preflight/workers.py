"""Batches of rows examined in several processes, in order."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from trl_plus.preflight.examine import Batch, examine
from trl_plus.preflight.tally import Tally
from trl_plus.preflight.target import Target
from trl_plus.ui.console import quiet_maps

_AHEAD = 2  # batches per process that are read before one is finished: memory stays bounded
_of_this_process: dict[str, Target] = {}


def _begin(target: Target) -> None:
    _of_this_process["target"] = target


def _examine(batch: Batch, near: bool) -> Tally:
    with quiet_maps():
        return examine(batch, _of_this_process["target"], near)


def examine_in_processes(parts: Iterator[Batch], target: Target, near: bool, processes: int) -> Iterator[Tally]:
    """`examine` of each batch, in the order of the batches.

    Processes are spawned: a fork would take over the threads of torch and of the tokenizers in an unknown state.
    """
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(target,)) as pool:
        running: deque[Future[Tally]] = deque()
        for batch in parts:
            running.append(pool.submit(_examine, batch, near))
            if len(running) >= _AHEAD * processes:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
