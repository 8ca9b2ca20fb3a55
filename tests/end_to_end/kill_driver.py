"""Runs a recipe to its end through kills, each attempt in a fork of this process. Started by test_kill.py.

Prints one JSON object: how many attempts were killed, how many were not and how they ended, and what was said.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[2]))

import safetensors.torch
import torch
from tqdm import tqdm

from trl_plus.recipes.recipe import load_recipe
from trl_plus.runs import checkpoint_files
from trl_plus.trainers.base import PreferenceTrainer
from trl_plus.training.run import run

# module and function at whose k-th call the process dies, in the middle of what it writes where it writes
CALLS = {
    "rename": (os, "rename"),
    "replace": (os, "replace"),
    "rmtree": (checkpoint_files.shutil, "rmtree"),
    "torch.save": (torch, "save"),
    "save_file": (safetensors.torch, "save_file"),
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(name, k):
    module, function = CALLS[name]
    original, calls = getattr(module, function), [0]

    def killer(*args, **kwargs):
        calls[0] += 1
        if calls[0] < k or (name == "torch.save" and not isinstance(args[1], str | os.PathLike)):
            return original(*args, **kwargs)
        if name in ("torch.save", "save_file"):
            original(*args, **kwargs)
            path = Path(args[1])
            os.truncate(path, path.stat().st_size // 2)
        elif name == "rmtree":
            next((path.unlink() for path in Path(args[0]).rglob("*") if path.is_file()), None)
        return die()

    setattr(module, function, killer)


def die_after(seconds):
    """From the first window of the attempt on."""
    draw = PreferenceTrainer.get_batch_samples

    def start(self, *args):
        PreferenceTrainer.get_batch_samples = draw
        threading.Timer(seconds, die).start()
        return draw(self, *args)

    PreferenceTrainer.get_batch_samples = start


def attempt(recipe, out, kill, said):
    """Forks a run; its exit status as `os.waitstatus_to_exitcode` gives it."""
    complete = Path(out).is_dir() and checkpoint_files.find(Path(out)).newest is not None
    child = os.fork()
    if child == 0:
        try:
            if kill and kill[0] == "time":
                die_after(kill[1])
            elif kill:
                die_at_call(*kill)
            with open(said, "a", buffering=1) as file:
                run(load_recipe(recipe), "newest" if complete else None, lambda text: file.write(f"{text}\n"))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(recipe, out, kills, seed):
    rng, said, ended = random.Random(seed), f"{out}.said", []
    start = time.monotonic()
    tqdm.monitor_interval = 0  # no thread may run when this process forks
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared by all forks: one killed while it holds it blocks them all
    run(load_recipe(f"{recipe}.whole.yaml"), None, lambda text: None)  # here: the forks then find all modules imported
    seconds = json.loads(Path(f"{out}-whole/metrics.json").read_text())["train"]["train_runtime"]
    for number in range(kills):
        at_random = ("time", rng.uniform(0, seconds / 6))
        kill = (rng.choice(sorted(CALLS)), rng.randint(1, 3)) if number % 2 else at_random
        ended.append((attempt(recipe, out, kill, said), kill))
        if ended[-1][0] == 0:  # it came to its end first: once more from the beginning
            shutil.rmtree(out)
    last = attempt(recipe, out, None, said)
    result = {"ended": ended, "last": last, "said": Path(said).read_text(), "seconds": time.monotonic() - start}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
