"""The peak memory of one training step, found by running it on tensors without data.

Its micro-batches are the largest ones that the rows of the run make in its row layout.
"""

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trl_plus.data.refusals import refuse_rows
from trl_plus.errors import DataError, NoRowLeft
from trl_plus.forward.attention import carry
from trl_plus.forward.layouts import Plan, make_plan
from trl_plus.forward.lm_head import TRANSFORMED_LOGITS, completion_log_probs, of_logits, outside_of_head, own_logits
from trl_plus.preflight.tokens import trainer_rows
from trl_plus.setup.objects import RunObjects

DRAWS = 200
Lengths = tuple[int, int]  # tokens of a sequence with its prompt, and of its completion


@dataclass(frozen=True)
class Row:
    """The sequences of a row as the trainer cuts them.

    Attributes:
        sides: chosen and rejected of a pair, or one completion.
        common: tokens that the sides begin with alike.
    """

    sides: tuple[Lengths, ...]
    common: int = 0


@dataclass(frozen=True)
class Shape:
    """The size of a micro-batch for the model.

    Attributes:
        rows: sequences: two per pair, one per labelled row.
        tokens: padded length of each.
        scored: tokens whose log-probability is taken, over all rows.
        plan: how the sequences are laid out; None for plain rows, whose attention is then taken to need a mask.
    """

    rows: int
    tokens: int
    scored: int
    plan: Plan | None = None

    @property
    def computed(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.rows * self.tokens if self.plan is None else self.plan.computed


@dataclass(frozen=True)
class Rows:
    """A sample of rows, cut at `max_length`.

    Attributes:
        sample: empty if the data could not be read, and `bound` stands for it then.
        bound: `max_length`, or the longest sequence of the sample if there is none.
        per_row: sequences of a row.
        multiple: plain rows are padded to a multiple of this.
        scores_prompt: ORPO's `nll_scope: full` scores the chosen side's prompt too.
        layout: "rows", "shared" or "packed".
        share: common beginnings are kept once.
        budget: `tokens_per_device`.
    """

    sample: list[Row]
    bound: int
    per_row: int
    multiple: int = 1
    scores_prompt: bool = False
    layout: str = "rows"
    share: bool = True
    budget: int | None = None

    def worst(self, batch: int) -> Shape:
        """The largest micro-batch of `batch` rows: the longest ones, and the longest completions.

        With a budget, of as many of `batch` rows as it holds.
        """
        if self.budget is None:
            rows, scored = self._most(batch, self._size), self._most(batch, self._scored)
            return self._shape(rows, sum(map(self._scored, scored)))
        every = max(batch, len(self._known))
        rows = self._most(every, self._size)
        if self.layout != "packed":  # padding is not counted: many short rows fit beside a long one
            rows = [rows[0], *rows[:0:-1]]
        scored = self._most(every, lambda row: self._scored(row) / self._cost(row))
        return self._shape(self._filled(rows)[:batch], sum(map(self._scored, self._filled(scored)[:batch])))

    def mismatched(self, batch: int) -> tuple[Shape, Shape]:
        """KTO's largest passes for z_ref: the policy's, of mismatched rows, and the reference's, of both completions.

        The longest prompts come before the longest completions.
        """
        both = [lengths for row in self._known for lengths in row.sides]
        totals, prompts, completions = (
            sorted(values, reverse=True)
            for values in ([t for t, _ in both], [t - c for t, c in both], [c for _, c in both])
        )
        rows = []
        for i in range(batch):
            i %= len(both)
            total = min(self.bound, prompts[i] + completions[i])
            other = (total, min(completions[i], total - 1))
            rows.append(Row(((totals[i], completions[i]), other), min(prompts[i], total)))
        rows = self._filled(rows if self.layout == "packed" else [rows[0], *rows[:0:-1]])
        policy = [Row(row.sides[1:]) for row in rows]
        return tuple(self._shape(part, sum(c for row in part for _, c in row.sides)) for part in (policy, rows))

    def mean(self, batch: int) -> float:
        """Tokens that `batch` rows need on average, padding included, over random draws."""
        draw = random.Random(0)
        if not self.sample:
            return float(self._shape(self._known * batch, 0).computed)
        sizes = [self._shape(draw.choices(self.sample, k=batch), 0).computed for _ in range(DRAWS)]
        return sum(sizes) / len(sizes)

    @property
    def _known(self) -> list[Row]:
        return self.sample or [Row(((self.bound, self.bound - 1),) * self.per_row)]

    def _most(self, batch: int, key: Callable[[Row], float]) -> list[Row]:
        """The `batch` rows with the largest key; rows repeat if there are fewer."""
        rows = sorted(self._known, key=key, reverse=True)
        return (rows * (batch // len(rows) + 1))[:batch]

    def _filled(self, rows: list[Row]) -> list[Row]:
        """The rows that the budget holds, taken in order; the first one in any case."""
        if self.budget is None:
            return rows
        found, room = rows[:1], self.budget - self._cost(rows[0])
        for row in rows[1:]:
            if self._cost(row) <= room:
                found.append(row)
                room -= self._cost(row)
        return found

    def _cost(self, row: Row) -> int:
        """Tokens of a row with its common beginning once, as a budget counts."""
        return sum(total for total, _ in row.sides) - row.common * (len(row.sides) - 1)

    def _size(self, row: Row) -> int:
        """The size of a row in a micro-batch: its longest side if padded, all its tokens if laid out."""
        return max(total for total, _ in row.sides) if self.layout == "rows" else self._laid_out(row)

    def _laid_out(self, row: Row) -> int:
        return self._cost(row) if self.share else sum(total for total, _ in row.sides)

    def _scored(self, row: Row) -> int:
        (total, completion), *others = row.sides
        return (total - 1 if self.scores_prompt else completion) + sum(completion for _, completion in others)

    def _shape(self, rows: list[Row], scored: int) -> Shape:
        lengths = [row.sides[side][0] for side in range(len(rows[0].sides)) for row in rows]
        width = -(-max(lengths) // self.multiple) * self.multiple
        if self.layout == "rows":
            return Shape(len(lengths), width, scored)
        common = torch.tensor([row.common if self.share else 0 for row in rows])
        return Shape(len(lengths), width, scored, make_plan(torch.tensor(lengths), common, width, self.layout))


# -- lengths of a sample of the data, by the model's own tokenizer ------------------------------------------------

SAMPLE = 1000


def sampled(objects: RunObjects, data: Any, processor: Any) -> list[Row]:
    """The lengths of a random sample of the training rows, as the trainer makes them.

    Args:
        data: training rows as `trl_plus.data.loading.load` gives them; a stream's first rows are taken.

    Raises:
        DataError: the trainer would refuse the rows.
    """
    args, rows = objects.args, _sample(data, objects.args.seed)
    images = [column for column in ("image", "images") if column in rows.column_names]
    if images:  # their tokens depend on the images, so only the text is counted
        rows, processor = rows.remove_columns(images), getattr(processor, "tokenizer", processor)
    try:
        refuse_rows(rows, "train")
        made = trainer_rows(rows, args, processor, args.max_length)
    except NoRowLeft:
        return []
    except ValueError as error:
        raise DataError(str(error)) from error
    sides = [side for side in ("chosen", "rejected", "completion") if f"{side}_ids" in made.column_names]
    tokens = made.select_columns(["prompt_ids", *(f"{side}_ids" for side in sides)])
    return [_measured(row, sides, args.max_length) for row in tokens]


def _sample(data: Any, seed: int) -> Any:
    from datasets import Dataset

    if not hasattr(data, "__len__"):
        return Dataset.from_list(list(data.take(SAMPLE)))
    return data.select(sorted(random.Random(seed).sample(range(len(data)), min(SAMPLE, len(data)))))


def _measured(row: dict[str, Any], sides: list[str], max_length: int | None) -> Row:
    prompt = row["prompt_ids"]
    ids = [[*prompt, *row[f"{side}_ids"]][:max_length] for side in sides]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[0], ids[-1], strict=False)))
    lengths = tuple((len(side), max(0, len(side) - len(prompt))) for side in ids)
    return Row(lengths, common if len(ids) > 1 else 0)


# Labels of a ledger, and of an estimate's components
WEIGHTS, ADAPTER, GRADIENTS, ACTIVATIONS, HEAD = "weights", "adapter", "gradients", "activations", "logits"


@dataclass(frozen=True)
class Passes:
    """The passes of a step.

    Attributes:
        cuda: on a GPU, where TRL's fused LM head projects tiles of the scored tokens only.
        own_head: off CUDA, whether our LM head is used; TRL's scores every position otherwise.
        autocast: dtype of mixed precision, or None.
        reference: the reference scores the micro-batch, by a pass without gradient.
        accumulate: gradients of earlier micro-batches are there already.
        z_ref: KTO's passes before the first micro-batch, without gradient, by policy and reference.
    """

    cuda: bool
    own_head: bool
    autocast: torch.dtype | None
    reference: bool
    accumulate: bool
    z_ref: tuple[Shape, ...] = ()


class Ledger(TorchDispatchMode):
    """While active, every storage that an operation returns is counted from its making to its freeing.

    Storages are counted, not tensors: views and saved references cost nothing. What a kernel allocates inside itself
    is not seen.

    Attributes:
        peak: bytes alive at the worst moment since `restart`.
        at_peak: the same bytes by label.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = "activations"
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._alive: dict[int, tuple[int, str]] = {}
        self._by_label: Counter[str] = Counter()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self._by_label.total(), dict(self._by_label)

    def count(self, tensor: Tensor, label: str | None = None) -> None:
        """Count a tensor's storage under `label` (the current one if None), once."""
        storage = tensor.untyped_storage()
        key, label = id(storage), label or self.label
        if key in self._alive:
            return
        self._alive[key] = (storage.nbytes(), label)
        self._by_label[label] += storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        if (now := self._by_label.total()) > self.peak:
            self.peak, self.at_peak = now, dict(self._by_label)

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        self._freed(id(tensor.untyped_storage()))
        self.count(tensor, label)

    def _freed(self, key: int) -> None:
        size, label = self._alive.pop(key, (0, self.label))
        self._by_label[label] -= size

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within this context new storages are counted under `label`."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out


def peak_of_step(fake: FakeTensorMode, model: nn.Module, shape: Shape, passes: Passes) -> dict[str, int]:
    """Bytes alive at the peak of a micro-batch, by label; optimizer states and a second model are not among them.

    Args:
        fake: the mode under which `model` was built.
    """
    ledger = Ledger()
    with fake, ledger:
        for tensor in [*model.parameters(), *model.buffers()]:
            ledger.count(tensor, ADAPTER if tensor.requires_grad and _has_adapter(model) else WEIGHTS)
        trained = [p for p in model.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(lambda p: ledger.relabel(p.grad, GRADIENTS)) for p in trained]
        if passes.accumulate:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
                ledger.relabel(parameter.grad, GRADIENTS)
        ledger.restart()
        try:
            for mismatched in passes.z_ref:
                with torch.no_grad():
                    _log_probs(model, mismatched, passes, ledger, statistics=False)
            log_probs = _log_probs(model, shape, passes, ledger, statistics=True)
            if passes.reference:
                with torch.no_grad():
                    _log_probs(model, shape, passes, ledger, statistics=False)
            with ledger.labelled(HEAD):  # the backward pass begins in the head; `_log_probs` notices its end
                log_probs.sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in trained:
                parameter.grad = None
    return {label: size for label, size in ledger.at_peak.items() if size}


def _has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def _log_probs(model: Any, shape: Shape, passes: Passes, ledger: Ledger, statistics: bool) -> Tensor:
    causal = model.get_base_model() if _has_adapter(model) else model
    autocast = nullcontext() if passes.autocast is None else torch.autocast("cpu", passes.autocast)
    with autocast:
        if causal.base_model is causal or outside_of_head(causal, weight_only=False) is not None:
            return _own_log_probs(causal, shape, ledger, statistics)
        hidden = _hidden(causal, shape)
        with ledger.labelled(HEAD):
            head = causal.get_output_embeddings()
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: setattr(ledger, "label", ACTIVATIONS))
            return _head(hidden, shape, head, passes, causal.config.get_text_config(), statistics)


def _own_log_probs(causal: Any, shape: Shape, ledger: Ledger, statistics: bool) -> Tensor:
    """Log-probabilities from the logits of the model's own forward, which a model without a fused LM head needs."""

    def after_backbone(module: Any, args: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            return output
        if shape.plan is not None:
            scored = torch.zeros(shape.scored, dtype=torch.long)
            states = output.last_hidden_state = states.reshape(-1, states.size(-1))[scored][None]
        ledger.label = HEAD
        if states.requires_grad:
            states.register_hook(lambda grad: setattr(ledger, "label", ACTIVATIONS))
        return output

    if shape.plan is None:
        ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        ids = torch.zeros(shape.plan.source.shape, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": carry(shape.plan), "position_ids": ids}
    handle = causal.base_model.register_forward_hook(after_backbone)
    try:
        with ledger.labelled(ledger.label):
            logits, _ = own_logits(causal.forward, inputs | {"use_cache": False})
            places = torch.zeros(2, shape.scored, dtype=torch.long)
            targets = torch.zeros(shape.scored, dtype=torch.long)
            log_probs = of_logits(logits[places[0], places[1]], targets, statistics)[0]
    finally:
        handle.remove()
    assert log_probs is not None
    return log_probs


def _hidden(causal: Any, shape: Shape) -> Tensor:
    """States (B, N, H): of every position of plain rows, of those that predict a scored token in a layout."""
    if shape.plan is None:
        ids = torch.zeros(shape.rows, shape.tokens, dtype=torch.long)
        mask = torch.ones_like(ids)
        return causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    ids = torch.zeros(shape.plan.source.shape, dtype=torch.long)
    states = causal.base_model(
        input_ids=ids, attention_mask=carry(shape.plan), position_ids=ids, use_cache=False
    ).last_hidden_state
    return states.reshape(-1, states.size(-1))[torch.zeros(shape.scored, dtype=torch.long)][None]


def _head(hidden: Tensor, shape: Shape, head: Any, passes: Passes, config: Any, statistics: bool) -> Tensor:
    """Log-probabilities by whichever LM head the run would use."""
    places = torch.zeros(2, shape.scored, dtype=torch.long)
    targets = torch.zeros(shape.scored, dtype=torch.long)
    if passes.cuda:
        return _TiledHead.apply(hidden[places[0], places[1]], head.weight)
    plain = all(getattr(config, name, None) is None for name in TRANSFORMED_LOGITS)
    if passes.own_head and plain and isinstance(head, nn.Linear):
        log_probs = completion_log_probs(hidden[places[0], places[1]], targets, head, statistics)[0]
        assert log_probs is not None
        return log_probs
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    outputs = ("entropy", "mean_logits", "is_top1") if statistics else ()
    flat = hidden.reshape(-1, hidden.size(-1))
    every = torch.zeros(len(flat), dtype=torch.long)
    return ChunkedLogProbFunction.apply(flat, head.weight, head.bias, every, 1.0, TILE_WIDTH, None, 1.0, outputs)[0]


# A tile of TRL's fused LM head: tokens, and columns of the vocabulary
TILE_TOKENS, TILE_WIDTH = 4096, 32768


class _TiledHead(torch.autograd.Function):
    """Allocates as TRL's fused LM head does on CUDA: a tile of logits, and float32 gradients of states and weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        _TiledHead._tile(hidden, weight, ctx.compute)
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def _tile(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The buffers of one tile: logits, and the states and the part of the weight in the compute dtype."""
        tokens, width = min(len(hidden), TILE_TOKENS), min(len(weight), TILE_WIDTH)
        tile = hidden.new_empty(tokens, TILE_WIDTH, dtype=dtype)
        return tile, hidden[:tokens].to(dtype), weight[:width].to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        buffers = _TiledHead._tile(hidden, weight, ctx.compute)
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
        if not ctx.needs_input_grad[1]:
            return grad_hidden.to(hidden.dtype), None
        grad_weight = torch.empty_like(weight, dtype=torch.float32)
        del buffers
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype)
