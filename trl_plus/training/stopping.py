"""SIGTERM, Ctrl-C and a closed terminal: finish the step, save a checkpoint, exit 130."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from trl_plus.launch.signals import leave_terminal, stopping_signals

# A launcher passes on what the terminal has sent to every process already: that is no second Ctrl-C
_ONE_PRESS_S = 1.0


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint, or its model; the message says which."""


class StopOnSignal(TrainerCallback):
    """While it is entered, the first signal lets the current step finish; a second Ctrl-C stops at once.

    Before training and after `done`, a signal stops at once: nothing would be saved by waiting.
    """

    def __init__(self, output_dir: str, say: Callable[[Any], None]) -> None:
        self.output_dir, self.say = output_dir, say
        self._asked_at: float | None = None
        self._training = False
        self._saving = False
        self._after: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self._before = {number: signal.signal(number, self._handle) for number in stopping_signals()}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def done(self, after: str) -> None:
        """The model is saved: from now on a signal stops at once and says `after`, as does one that came before."""
        self._training, self._after = False, after
        if self._asked_at is not None:
            raise Stopped(after)

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        leave_terminal(number)
        if self._after is not None:
            raise Stopped(self._after)
        if not self._training:
            raise KeyboardInterrupt
        if self._asked_at is None:
            self._asked_at = now
            # not through `say`: a signal can arrive in the middle of a print
            print("Finishing this step and saving; Ctrl-C again stops at once.", file=sys.__stderr__)
        elif number == signal.SIGINT and now - self._asked_at > _ONE_PRESS_S:
            raise KeyboardInterrupt

    # -- the training loop ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _anywhere(self._asked_at is not None, args):
            self._saving = control.should_save = True
            args.save_only_model = False  # or nothing could go on from it
            if args.save_strategy == SaveStrategy.BEST:  # would save after a new best evaluation only
                args.save_strategy = SaveStrategy.STEPS

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._saving:
            raise Stopped(
                f"Stopped at step {state.global_step}: saved {self.output_dir}/checkpoint-{state.global_step}. "
                "The same command with --resume goes on."
            )


def _anywhere(asked: bool, args: Any) -> bool:
    """Whether any process was asked to stop: all must stop after the same step."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor(float(asked), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
