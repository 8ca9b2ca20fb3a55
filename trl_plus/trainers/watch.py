"""Is it learning? A callback that reads the log and says once, in one sentence with the fix, what looks wrong.

A rule compares what was logged: it sees what a person in front of the curves would see, only earlier. Rules stay
silent where the log cannot tell: a false alarm costs more trust than a late one.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from trl_plus.methods import FAMILIES
from trl_plus.published import BETAS, RATES
from trl_plus.trainers.optimizers import optimizer_name, updates_in_backward
from trl_plus.upstream.compat import TRLKTOConfig
from trl_plus.upstream.models import adapter_of, parameters

logger = logging.getLogger("trl_plus")
Log = dict[str, float]

SETTLED = 50  # optimizer steps after warm-up before a flat curve means anything
WINDOW = 10  # logs that a level is averaged over; the rules are asked as often
KEPT = 40 * WINDOW + 1  # logs that are remembered, half of them the first ones: a long run costs no more per log
PINNED = 1e-6  # nats: a z_ref up to here is 0
UNMOVED = 0.05  # nats: a log-ratio to the reference below this is none
CHANCE = 0.6  # reward accuracy up to here is no sign that anything was learned
FALL = 0.2  # share of their first level by which chosen log-probabilities must have fallen
STILL = 1e-3  # share of the held-out loss at step 0 by which loss and margin may differ and have not moved
FEWEST = 20  # optimizer steps from which the end of a run says whether it learned anything
ONE_LABEL = 0.1  # share of one-label steps that is no accident


@dataclass(frozen=True)
class Setup:
    """The facts of a run that the rules read.

    Attributes:
        method: "DPO", "SimPO", "ORPO", "CPO" or "KTO".
        beta: the loss's temperature; rewards are in units of it.
        warmup: optimizer steps of warm-up.
        rows: per-device rows of an optimizer step.
        learning_rate: the configured peak.
        last: the optimizer step that the run ends with.
        lora: the model has a LoRA adapter.
    """

    method: str
    beta: float
    warmup: int
    rows: int
    learning_rate: float
    last: int = 0
    lora: bool = False

    @property
    def reference(self) -> bool:
        """True if rewards are log-ratios to a reference, and so 0 while nothing was learned."""
        return FAMILIES[self.method].reference


def stuck(logs: list[Log], setup: Setup) -> str | None:
    """The loss is where it was at step 0. With a reference: all rewards are still 0. Else: no metric has a trend."""
    if not _settled(logs, setup):
        return None
    at_zero = setup.reference and _at_reference(logs[-WINDOW:], setup)
    if not (at_zero or _without_trend(logs)):
        return None
    why = "and all rewards are 0" if at_zero else "and neither margins nor log-probabilities have a trend"
    return (
        f"The model is not learning: after {logs[-1]['step']:.0f} steps the loss is still {logs[-1]['loss']:.4f}, "
        f"where it began, {why}: raise learning_rate (now {setup.learning_rate:g}), and check that parameters are "
        "trainable and that the better and the worse completions differ."
    )


def unmoved(before: Log, now: Log, setup: Setup) -> str | None:
    """Held-out loss and margin are those of step 0. The rows are the same, so there is no noise to allow for."""
    if moved(before, now) or now["step"] < (FEWEST if now["step"] == setup.last else setup.warmup + SETTLED):
        return None
    modules = ", or, with LoRA on some modules only, write `lora_target_modules: all-linear`" if setup.lora else ""
    return (
        f"The model is not learning: the held-out loss did not move in {now['step']:.0f} steps "
        f"({before['eval_loss']:.4f} -> {now['eval_loss']:.4f}): raise learning_rate (now {setup.learning_rate:g})"
        f"{modules}."
    )


def moved(before: Log, now: Log) -> bool:
    """True if the held-out loss, or the margin that it is made of, differs from what it was."""
    names = ("eval_loss", "eval_rewards/margins")
    return any(abs(now.get(name, 0.0) - before.get(name, 0.0)) > STILL * abs(before["eval_loss"]) for name in names)


def pinned_reference_point(logs: list[Log], setup: Setup) -> str | None:
    """KTO's z_ref has been 0 in every log, although the policy has left the reference."""
    measured = [log for log in logs if "kl" in log]
    if len(measured) < WINDOW or not _settled(measured, setup) or any(log["kl"] > PINNED for log in measured):
        return None
    rewards = [abs(log[side]) for log in measured[-WINDOW:] for side in _REWARDS if side in log]
    if not rewards or mean(rewards) <= 10 * UNMOVED * setup.beta:
        return None
    return (
        f"KTO's reference point z_ref (`kl`) has been 0 in all {measured[-1]['step']:.0f} steps although rewards move, "
        "so nothing holds the policy back: lower learning_rate, raise beta, or put more rows of different prompts "
        f"into an optimizer step (now {setup.rows} per device)."
    )


def one_label(logs: list[Log], setup: Setup) -> str | None:
    """Many optimizer steps of KTO hold only desirable or only undesirable rows."""
    measured = [log for log in logs if "one_label_steps" in log]
    if len(measured) < WINDOW:
        return None
    share = mean(log["one_label_steps"] for log in measured)
    if share <= ONE_LABEL:
        return None
    return (
        f"{share:.0%} of the optimizer steps hold rows of one label only, so they push all completions one way: raise "
        f"gradient_accumulation_steps or per_device_train_batch_size (now {setup.rows} rows per device and step), "
        "shuffle the rows, or balance the labels."
    )


def falling_together(logs: list[Log], setup: Setup) -> str | None:
    """Margins grow only because rejected completions lose more likelihood than the chosen ones, which lose it too."""
    measured = [log for log in logs if {"logps/chosen", "logps/rejected", "rewards/margins"} <= log.keys()]
    if len(measured) < 2 * WINDOW or not _settled(measured, setup):
        return None
    first, last = measured[: WINDOW // 2], measured[-WINDOW // 2 :]
    change = {name: _change(first, last, name) for name in ("logps/chosen", "logps/rejected", "rewards/margins")}
    chosen, rejected = -change["logps/chosen"][0], -change["logps/rejected"][0]
    level = abs(mean(log["logps/chosen"] for log in first))
    clear = all(abs(size) > 3 * error for size, error in change.values())
    if not clear or change["rewards/margins"][0] <= 0 or chosen < FALL * level or chosen < rejected / 2:
        return None
    return (
        f"Chosen log-probabilities fall together with the rejected ones (by {chosen:.3g} and {rejected:.3g} since the "
        f"first steps), so the model unlearns good answers too: {FAMILIES[setup.method].if_both_fall}."
    )


RULES: tuple[Callable[[list[Log], Setup], str | None], ...] = (
    stuck,
    pinned_reference_point,
    one_label,
    falling_together,
)

_EARLY = "unmoved before the end"
_REWARDS = ("rewards/chosen", "rewards/rejected")


def _settled(logs: list[Log], setup: Setup) -> bool:
    return len(logs) >= 3 and logs[-1]["step"] >= setup.warmup + SETTLED


def _at_reference(logs: list[Log], setup: Setup) -> bool:
    """True if every reward of these logs is that of the reference itself."""
    rewards = [log[name] for log in logs for name in (*_REWARDS, "rewards/margins") if name in log]
    return bool(rewards) and max(map(abs, rewards)) <= UNMOVED * setup.beta


def _without_trend(logs: list[Log]) -> bool:
    """True if the second half of the logs looks like the first, within the noise, and wins no more than by chance.

    Looked at between 40 and 400 logs: fewer say nothing, and a run that moved in 400 logs is not stuck at its start.
    """
    names = ("loss", "rewards/margins", "logps/chosen")
    if not 4 * WINDOW <= len(logs) < KEPT or not all({*names, "rewards/accuracies"} <= log.keys() for log in logs):
        return False
    half = len(logs) // 2
    if mean(log["rewards/accuracies"] for log in logs[half:]) > CHANCE:
        return False
    changes = [_change(logs[:half], logs[half:], name) for name in names]
    return all(abs(size) <= error for size, error in changes)


def _change(first: list[Log], last: list[Log], name: str) -> tuple[float, float]:
    """The difference of two means, and its standard error."""
    before, after = [log[name] for log in first], [log[name] for log in last]
    error = (stdev(before) ** 2 / len(before) + stdev(after) ** 2 / len(after)) ** 0.5
    return mean(after) - mean(before), error


def method_of(args: Any) -> str:
    """The method of a training configuration, TRL's own included."""
    if isinstance(args, TRLKTOConfig):
        return "KTO"
    return getattr(args, "family", FAMILIES["DPO"]).name


class LearningWatch(TrainerCallback):
    """Watches a run's log and says each finding once, on the main process.

    It finds a training or held-out loss stuck at its start, a z_ref pinned at 0, steps of one label, chosen
    log-probabilities that fall together with the rejected ones, and, before the first step, a learning rate far outside
    the method's known range. Our trainers add one by themselves. A resumed run reads the log of its first part again
    and does not repeat itself.

    Args:
        say: prints a sentence; the logger `trl_plus` by default.
    """

    def __init__(self, say: Callable[[str], None] = logger.warning) -> None:
        self.say = say
        self._begin([], Setup("DPO", 0.1, 0, 1, 0.0))

    def _begin(self, logs: list[Log], setup: Setup) -> None:
        self.setup, self.said = setup, set[str]()
        self.logs: list[Log] = []
        self.count = 0  # of all logs, forgotten ones included
        self.before: Log | None = None  # the evaluation before the first step
        for log in logs:
            self._observe(log, lambda sentence: None)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        setup = Setup(
            method=method_of(args),
            beta=args.beta,
            warmup=args.get_warmup_steps(state.max_steps),
            rows=args.per_device_train_batch_size * args.gradient_accumulation_steps,
            learning_rate=args.learning_rate,
            last=state.max_steps,
            lora=adapter_of(model) == "LORA",
        )
        self._begin(state.log_history, setup)
        if model is None or state.global_step or not state.is_world_process_zero:
            return
        for sentence in before_the_first_step(setup.method, args, model, optimizer):
            self.say(sentence)

    def on_log(self, args: Any, state: Any, control: Any, logs: Log | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            self._observe({**logs, "step": state.global_step}, self.say)

    def _observe(self, log: Log, say: Callable[[str], None]) -> None:
        """Take in one log event of training or evaluation; the summary at the end is neither."""
        if "eval_loss" in log and "step" in log:
            self._observe_held_out(log, say)
        if "loss" not in log or "step" not in log or not any(name.startswith("rewards/") for name in log):
            return
        self.logs.append(log)
        self.count += 1
        if len(self.logs) > KEPT:
            del self.logs[KEPT // 2]
        if log.get("kl", 0.0) > PINNED:  # this log may be forgotten later
            self.said.add(pinned_reference_point.__name__)
        if self.count % WINDOW and log["step"] != self.setup.last:
            return
        for rule in RULES:
            if rule.__name__ in self.said:
                continue
            sentence = rule(self.logs, self.setup)
            if sentence is not None:
                self.said.add(rule.__name__)
                say(sentence)

    def _observe_held_out(self, log: Log, say: Callable[[str], None]) -> None:
        """Take in one evaluation. What stands still is said once, and once more at the end of the run."""
        if log["step"] == 0:
            self.before = log
        if self.before is None or unmoved.__name__ in self.said:
            return
        if moved(self.before, log):  # later evaluations are of a model that has learned something
            self.said.add(unmoved.__name__)
            return
        at_end = log["step"] == self.setup.last
        sentence = unmoved(self.before, log, self.setup)
        if sentence is not None and (at_end or _EARLY not in self.said):
            self.said.add(unmoved.__name__ if at_end else _EARLY)
            say(sentence)


# -- a run's learning rate and beta beside published ones, before its first step ------------------------------------


LORA = 10  # adapters are trained with rates up to this many times higher than full weights
MARGIN = 5  # published rates are few: only a rate this far outside is reported
BETA_MARGIN = 10  # and only a beta this far outside
NEAR = 4  # models within this factor in parameters are of one size
SMALLEST = 100_000_000  # parameters; smaller models take far higher rates, and none is published


def before_the_first_step(method: str, args: Any, model: Any, optimizer: Any) -> Iterator[str]:
    """One sentence for each reason in the rate or the optimizer for which a run learns nothing or is not exact."""
    found = (
        unknown_rate(method, args, model),
        unknown_beta(method, args),
        rounded_away(model, args, optimizer),
        updates_in_backward(args),
    )
    return (sentence for sentence in found if sentence is not None)


def unknown_rate(method: str, args: Any, model: Any) -> str | None:
    """One sentence on a learning rate far outside the published ones (trl_plus/published.py), or None.

    The comparison is with full fine-tuning of models of about this size, for LoRA with ten times that and with
    published LoRA rates. None for small models, for optimizers other than Adam, and for adapters other than LoRA,
    for which no rates are published.
    """
    adapter, size = adapter_of(model), parameters(model)
    if size < SMALLEST or "adam" not in str(args.optim).lower() or adapter not in ("none", "LORA"):
        return None
    known, of_what = published_rates(method, size / 1e9, lora=adapter == "LORA")
    (low, lowest), (high, highest) = min(known), max(known)
    if low / MARGIN <= args.learning_rate <= high * MARGIN:
        return None
    far, effect = ("below", "may learn nothing") if args.learning_rate < low else ("above", "may end in repetition")
    bounds = f"{low:g} ({lowest})" if low == high else f"{low:g} ({lowest}) to {high:g} ({highest})"
    return (
        f"learning_rate {args.learning_rate:g} is far {far} the published rates of {method} for {of_what}, {bounds}, "
        f"and {effect}: set a rate in that range, unless a sweep on your model says otherwise."
    )


def published_rates(method: str, size: float, lora: bool) -> tuple[list[tuple[float, str]], str]:
    """Rates that a run is compared with, each with the model it is known from, and words for what they are of.

    Args:
        size: parameters of the model, in billions. Without a published rate within a factor of 4, the nearest count.
        lora: the run trains a LoRA adapter.
    """
    full = [rate for rate in RATES if rate.method == method and not rate.lora]
    distance = min(abs(math.log(rate.size / size)) for rate in full)
    near = [rate for rate in full if abs(math.log(rate.size / size)) <= max(distance, math.log(NEAR))]
    known = [(value, rate.label) for rate in near for value in {rate.low, rate.high}]
    models = "models of this size" if distance <= math.log(NEAR) else "the models nearest in size"
    if not lora:
        return known, f"full fine-tuning of {models}"
    known += [(LORA * value, f"{LORA} times full fine-tuning's of {model}") for value, model in known]
    adapters = [rate for rate in RATES if rate.method == method and rate.lora]
    known += [(value, rate.label) for rate in adapters for value in {rate.low, rate.high}]
    return known, f"LoRA and full fine-tuning of {models}" if adapters else f"full fine-tuning of {models}"


def unknown_beta(method: str, args: Any) -> str | None:
    """One sentence on a `beta` far outside the published ones for its loss (trl_plus/published.py), or None.

    One value of `beta` means different things to different losses. None for a loss without published values.
    """
    losses = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    if (method == "CPO" and losses != ["sigmoid"]) or args.beta == 0:
        return None
    if getattr(args, "ipo_reduction", "mean") != "mean":  # the published values are of the mean over tokens
        return None
    names = losses if method == "DPO" else [method]
    for beta in BETAS:
        if beta.loss not in names or beta.low / BETA_MARGIN <= args.beta <= beta.high * BETA_MARGIN:
            continue
        far = "below" if args.beta < beta.low else "above"
        known = f"{beta.low:g}" if beta.low == beta.high else f"{beta.low:g} to {beta.high:g}"
        loss = f"loss_type {beta.loss}" if method == "DPO" else method
        return (
            f"beta {args.beta:g} is far {far} the published values for {loss}, {known} ({beta.source}); each loss has "
            "its own scale of beta: set a value in that range, unless a sweep on your model says otherwise."
        )
    return None


# -- weights in 16 bits whose steps are rounded away ----------------------------------------------------------------


SAMPLE = 4096  # weights that are looked at of each tensor, evenly spread
MOST = 0.5  # share of weights from which a run is warned: measured by benchmarks/rounding.py (docs/reliability.md)
# The same of an adapter, whose one half starts at 0 and learns while the other stands still
MOST_OF_ADAPTER = 0.9
# Optimizers whose step is not about the rate, but the rate times the gradient
_BY_GRADIENT = ("sgd", "lomo")
# What optimizers call a step that is not lost to rounding
_KEEPS_REST = ("bf16_stochastic_round", "stochastic_rounding", "kahan_sum", "use_kahan_summation")


def rounded_away(model: Any, args: Any, optimizer: Any) -> str | None:
    """One sentence if a step of about `learning_rate` leaves most trained weights as they are, or None.

    float16 weights are always named.

    Says nothing for optimizers whose steps have another size (SGD), that round stochastically or keep what rounding
    took, and under DeepSpeed, which steps a copy in float32.
    """
    name = optimizer_name(args)
    if any(p.requires_grad and p.dtype is torch.float16 for p in model.parameters()):
        return (
            "Trained weights are float16 numbers, in which small gradients and Adam's averages of their squares become "
            "0: steps are lost or blow up. Fix: train float32 weights (`dtype: float32`); `fp16: true` computes in "
            "float16 all the same."
        )
    if not args.learning_rate or keeps_rest(optimizer) or any(part in name for part in _BY_GRADIENT):
        return None
    needed = needed_rates(model)
    share = float((needed > args.learning_rate).double().mean()) if len(needed) else 0.0
    if share <= (MOST_OF_ADAPTER if getattr(model, "peft_config", None) else MOST):
        return None
    enough = float(f"{float(needed.quantile(0.5)):.0e}")
    return (
        f"{share:.1%} of the trained weights are bfloat16 numbers that a step of learning_rate {args.learning_rate:g} "
        f"cannot change: it is rounded away. Fix: train float32 weights (`dtype: float32`) with `bf16: true`, which "
        f"still computes in bfloat16, or raise learning_rate to about {enough:g}."
    )


def keeps_rest(optimizer: Any) -> bool:
    """True if an optimizer's small steps survive rounding, on average or in a buffer beside the weights."""
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        if "deepspeed" in type(optimizer).__module__:
            return True
        optimizer = optimizer.optimizer
    if type(optimizer).__module__.startswith(("deepspeed", "optimi.")):
        return "deepspeed" in type(optimizer).__module__ or optimizer.defaults.get("kahan_sum") is not False
    settings = {**getattr(optimizer, "defaults", {}), **vars(optimizer)} if optimizer is not None else {}
    return any(settings.get(name) for name in _KEEPS_REST)


@torch.no_grad()
def needed_rates(model: Any) -> Tensor:
    """(N,) float32 on the CPU: the smallest step that changes each of some trained weights; 0 for float32 ones.

    A step is lost if it is at most half the distance to the next number of the dtype. Tensors are sampled by size.
    """
    found = []
    trained = [p for p in model.parameters() if p.requires_grad and p.numel()]
    total = sum(p.numel() for p in trained)
    for parameter in trained:
        weights = getattr(parameter, "to_local", lambda parameter=parameter: parameter)().detach().flatten()
        share = max(1, min(len(weights), round(64 * SAMPLE * parameter.numel() / total)))
        some = weights[:: max(1, len(weights) // share)].cpu()
        if parameter.dtype in (torch.bfloat16, torch.float16):
            found.append(half_spacing(some))
        else:
            found.append(torch.zeros(len(some)))
    return torch.cat(found) if found else torch.zeros(0)


def half_spacing(weights: Tensor) -> Tensor:
    """Half the distance from 16-bit numbers to the next ones of their dtype, in float32."""
    info = torch.finfo(weights.dtype)
    exponent = torch.frexp(weights.float())[1] - 1  # weight = mantissa * 2^exponent, mantissa in [1, 2)
    smallest = info.smallest_normal * info.eps / 2
    spacing = torch.ldexp(torch.full(weights.shape, info.eps / 2), exponent).clamp(min=smallest)
    return spacing.masked_fill(weights == 0, smallest)
