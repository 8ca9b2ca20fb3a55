"""A sweep: its runs one after another or side by side, and what they show."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from trl_plus.errors import RecipeError
from trl_plus.launch.processes import INTERRUPTED, PARENT
from trl_plus.launch.request import launched
from trl_plus.sweep.grid import OneRun, Plan, read_plan
from trl_plus.sweep.halving import Round, rounds
from trl_plus.sweep.results import Results, ranking, results
from trl_plus.sweep.runs import Job, held_out_of, is_done, make, refuse_other_run
from trl_plus.sweep.worker import FAILED
from trl_plus.training.sharing import Shared, rows_key

Say = Callable[[Any], None]
_POLL = 0.2  # seconds


def sweep(
    argument: str, words: Sequence[str], seeds: int | None, out: Path | None, budget: int | None, jobs: int, say: Say
) -> Results:
    """Make every run that is missing, and compare the values.

    Args:
        argument, words, seeds, out, budget: as for `read_plan`.
        jobs: runs at a time, each in a process of its own if there are several.
        say: prints a sentence.

    Raises:
        RecipeError, DataError: the sweep is refused, before anything trains.
        KeyboardInterrupt: SIGTERM or Ctrl-C. The same command continues.
    """
    if launched():
        raise RecipeError("A sweep starts its runs itself: call it without a launcher, and with --jobs for several.")
    devices = devices_of(jobs)
    plan = read_plan(argument, words, seeds, out, budget)
    shared = Shared()
    steps = _accept(plan, shared, say)
    order = [Round(len(plan.variants), 0)]
    if budget is not None:
        order = rounds(len(plan.variants), len(plan.seeds), budget, steps)
        plan = read_plan(argument, words, seeds, out, budget, order[-1].until)
    _announce(plan, order, say)
    for run in plan.runs:
        refuse_other_run(run.recipe, plan.folder / run.name)
    failed: dict[str, str] = {}
    places, left = list(range(len(plan.variants))), {}
    try:
        for number, each in enumerate(order):
            last = number == len(order) - 1
            until = None if last else each.until
            chosen = [run for run in plan.runs if run.place in places and run.name not in failed]
            failed |= _make_all(plan, chosen, until, shared, jobs, devices, say)
            if not last:
                kept = ranking(plan, places, until, failed)[: order[number + 1].variants]
                left |= dict.fromkeys(set(places) - set(kept), each.until)
                places = sorted(kept)
                say(f"Round {number + 1} of {len(order)}, step {each.until}: kept {_named(plan, places)}.")
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"Stopped. The same command continues in {plan.folder}.") from error
    return results(plan, places, left, failed)


def _accept(plan: Plan, shared: Shared, say: Say) -> int | None:
    """Refuse what can be refused before anything trains; returns the steps of the longest run, if they are known.

    Raises:
        DataFound: preflight found errors in a sample of the rows.
    """
    from trl_plus.setup.machine_errors import check_machine
    from trl_plus.setup.objects import build
    from trl_plus.setup.plan import planned_steps
    from trl_plus.setup.trainer import load_processor, refuse_settings
    from trl_plus.training.run import look

    first = {run.place: run for run in reversed(plan.runs)}
    steps: list[int | None] = []
    for place, run in sorted(first.items()):
        check_machine(run.recipe)
        try:
            objects = build(run.recipe)
            refuse_settings(objects)
        except RecipeError as error:
            raise RecipeError(f"{plan.label(place)}: {error}") from error
        held_out = held_out_of(objects, shared)
        key = rows_key(objects.recipe, objects.data)
        shared.once(key, "look", partial(look, objects, load_processor(objects), say))
        args = objects.args
        batch = args.train_batch_size * args.gradient_accumulation_steps
        known = args.max_steps > 0 or hasattr(held_out.train, "__len__")
        data = _Rows(held_out.train) if known else None
        steps.append(planned_steps(objects, data, batch) if known else None)
    return None if None in steps else max(filter(None, steps))


class _Rows:
    """Training rows as `planned_steps` counts them: they are in the method's own form already."""

    def __init__(self, train: Any) -> None:
        self.train, self.format = train, self
        self.paired = "chosen" in (train.column_names or ())


def _announce(plan: Plan, order: Sequence[Round], say: Say) -> None:
    """Print how many runs there will be."""
    values, seeds = len(plan.variants), len(plan.seeds)
    seed = f"{seeds} seed{'s' if seeds > 1 else ''} ({', '.join(map(str, plan.seeds))})"
    say(f"{values * seeds} runs in {plan.folder}: {values} values of {' and '.join(plan.keys)}, {seed}.")
    if len(order) > 1:
        listed = ", then ".join(f"{each.variants} until step {each.until:,}" for each in order)
        say(f"Successive halving: {listed}.")
    if seeds == 1:
        say("One seed shows no spread between seeds, so no value will be called better: give --seeds 3 or more.")
    elif seeds == 2:
        say("Two seeds say little about the spread between seeds, so intervals will be wide: --seeds 3 or more helps.")


def _named(plan: Plan, places: Sequence[int]) -> str:
    return "; ".join(plan.label(place) for place in places)


def _make_all(
    plan: Plan,
    chosen: Sequence[OneRun],
    until: int | None,
    shared: Shared,
    jobs: int,
    devices: Sequence[str | None],
    say: Say,
) -> dict[str, str]:
    """Make some runs; why each that failed did, by its name."""
    waiting = [run for run in chosen if not is_done(plan.folder / run.name, until)]
    if len(waiting) < len(chosen):
        say(f"{len(chosen) - len(waiting)} of {len(chosen)} runs are there already.")
    failed = {}
    made = _in_turn(plan, waiting, until, shared) if jobs == 1 else _beside(plan, waiting, until, jobs, devices)
    for number, (run, problem) in enumerate(made, 1):
        how = "done" if problem is None else f"failed: {problem}"
        say(f"[{number}/{len(waiting)}] {plan.label(run.place)}, seed {run.seed}: {how}")
        if problem is not None:
            failed[run.name] = problem
    return failed


def _in_turn(
    plan: Plan, waiting: Sequence[OneRun], until: int | None, shared: Shared
) -> Iterator[tuple[OneRun, str | None]]:
    """The runs one after another in this process. Their sentences are in their journals."""
    for run in waiting:
        yield run, make(Job(plan.argument, run.words, until), shared, lambda what: None)


# -- side by side -------------------------------------------------------------------------------------------------


def devices_of(jobs: int) -> list[str | None]:
    """The CUDA_VISIBLE_DEVICES of each process; None to leave that as it is.

    Raises:
        RecipeError: there are not as many GPUs, or without GPUs not as many CPUs.
    """
    if jobs == 1:
        return [None]
    from trl_plus.launch.request import this_machine

    gpus, cpus = this_machine().gpus, os.cpu_count() or 1
    if gpus and jobs > gpus:
        raise RecipeError(f"--jobs {jobs}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}, one for each run.")
    if not gpus and jobs > cpus:
        raise RecipeError(f"--jobs {jobs}: this machine has {cpus} CPUs, at least one for each run.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return list(names[:jobs]) if gpus else [None] * jobs


def _beside(
    plan: Plan, waiting: Sequence[OneRun], until: int | None, jobs: int, devices: Sequence[str | None]
) -> Iterator[tuple[OneRun, str | None]]:
    """The runs in processes, at most `jobs` at a time, each with its log beside its folder."""
    queue, free = list(waiting), list(devices)
    with _processes() as (watched, running):
        while queue or running:
            while queue and free:
                run, device = queue.pop(0), free.pop(0)
                running[_start(plan, run, until, device, jobs, watched)] = (run, device)
            time.sleep(_POLL)
            for process in [process for process in running if process.poll() is not None]:
                run, device = running.pop(process)
                free.append(device)
                if process.returncode == INTERRUPTED:
                    raise KeyboardInterrupt
                yield run, _problem(process.returncode, plan.folder / f"{run.name}.log")


@contextmanager
def _processes() -> Iterator[tuple[int, dict[Any, Any]]]:
    """Running processes; those that are left at the end are asked to stop, and waited for: they save a checkpoint."""
    running: dict[Any, Any] = {}
    watched, held = os.pipe()  # `held` closes when this process ends, however it ends
    try:
        yield watched, running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        os.close(watched)
        os.close(held)


def _start(plan: Plan, run: OneRun, until: int | None, device: str | None, jobs: int, watched: int) -> Any:
    plan.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ} | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
    environment |= {PARENT: str(watched)} if os.name == "posix" else {}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    job = json.dumps(asdict(Job(plan.argument, run.words, until)))
    with (plan.folder / f"{run.name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trl_plus.sweep.worker", job],
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[watched] if os.name == "posix" else (),
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )


def _problem(code: int, log: Path) -> str | None:
    """The sentence for a process that failed; None if it did not."""
    if not code:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith(FAILED)), None)
    if said is not None and code == 1:
        return said.removeprefix(FAILED)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"its process {how}: {log} holds what it printed."
