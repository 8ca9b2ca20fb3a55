"""Rotary factors by the length of each row, for models that take them from the longest row of a forward.

`longrope` and `dynamic` rotary embeddings choose their factors by the largest position of a forward, and `dynamic` also
by the longest row of any forward before it. A row's log-probabilities then depend on the rows beside it. `own_factors`
makes every forward without a cache give each row the angles that the model gives it alone.
"""

import copy
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trl_plus.forward.layouts import Plan

LONGEST = 1 << 20  # tokens; no row is longer
FEW = 4  # positions that are compared: 0 has the angle 0 under any factors


@dataclass(frozen=True)
class Factors:
    """Groups of rows that have the same factors.

    Attributes:
        first: the shortest length, in tokens, whose factors are not those of short rows.
        by_length: from there on every length has factors of its own (`dynamic`). False: all have the same (`longrope`).
    """

    first: int
    by_length: bool

    def of(self, lengths: Tensor) -> Tensor:
        """Rows of these lengths (any shape, integers) with equal values here have equal factors."""
        return torch.where(lengths < self.first, 0, lengths if self.by_length else 1)


@dataclass
class Rows:
    """The rows of the current forward, for the rotary modules of one backbone.

    Attributes:
        lengths: tokens of the row that each token belongs to, on the CPU, to expand to (B, T); None: not known.
    """

    factors: Factors
    lengths: Tensor | None = None


def own_factors(model: Any) -> Factors | None:
    """Install the factors by row on a causal model; None, and nothing is changed, if its rows have the same anyway.

    A second call changes nothing. Forwards with a cache (generation), with positions from the caller or with rows that
    are not padded on the right stay as they are.
    """
    backbone = getattr(model, "base_model", model)
    rows: Rows | None = getattr(backbone, "rotary_rows", None)
    if rows is not None:
        return rows.factors
    found = {module: factors for module in _rotary(backbone) if (factors := _factors(module)) is not None}
    if not found:
        return None
    first = min(factors.first for factors in found.values())
    alike = len(set(found.values())) == 1
    rows = Rows(Factors(first, not alike or next(iter(found.values())).by_length))
    backbone.rotary_rows = rows
    backbone.register_forward_pre_hook(_before_forward, with_kwargs=True)
    for module in found:
        module.rotary_rows, module.forward = rows, types.MethodType(_forward, module)
    return rows.factors


def lay_out(backbone: Any, plan: "Plan") -> None:
    """Tell a backbone's rotary modules that its next forward computes this layout."""
    rows: Rows | None = getattr(backbone, "rotary_rows", None)
    if rows is not None:
        lengths = torch.tensor([1 if run.padding else run.shared + run.length for run in plan.branches])
        rows.lengths = lengths.repeat_interleave(torch.tensor(plan.runs)).view(plan.source.shape)


def forget_rows(model: Any) -> bool:
    """Forget the rows of earlier forwards; whether there is anything that depends on the rows of a forward."""
    modules = [module for module in _rotary(getattr(model, "base_model", model)) if hasattr(module, "rotary_rows")]
    for module in modules:
        x = torch.zeros(1, 1, 1, device=next(iter(module.buffers())).device)
        for names in _layer_types(module):
            type(module).forward(module, x, torch.zeros(1, 1, dtype=torch.long, device=x.device), **names)
    return bool(modules)


# -- finding them -----------------------------------------------------------------------------------------------------


def _rotary(backbone: torch.nn.Module) -> Iterator[Any]:
    """The modules that make angles from positions and have no weights."""
    for module in backbone.modules():
        if any(True for _ in module.children()) or any(True for _ in module.parameters()):
            continue
        names = list(inspect.signature(type(module).forward).parameters)
        if names[1:3] == ["x", "position_ids"] and any(True for _ in module.buffers()):
            yield module


def _factors(module: Any) -> Factors | None:
    """How a module's factors depend on the length of a row, asked of a copy of it on the CPU; None if they do not."""
    try:
        found = [_of_type(module, names) for names in _layer_types(module)]
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None  # not a function of positions alone
    depends = [factors for factors in found if factors is not None]
    if not depends:
        return None
    return Factors(min(f.first for f in depends), len(set(depends)) > 1 or depends[0].by_length)


def _layer_types(module: Any) -> list[dict[str, str]]:
    """The keyword arguments that tell a module for which kind of layer it makes angles."""
    if "layer_type" not in inspect.signature(type(module).forward).parameters:
        return [{}]
    if not isinstance(getattr(module, "rope_type", None), dict):
        return [{}]
    return [{"layer_type": name} for name in module.rope_type]


def _of_type(module: Any, names: dict[str, str]) -> Factors | None:
    def angles(length: int) -> list[Tensor]:
        positions = torch.tensor([[*range(FEW), length - 1]])
        made = _alone(module, torch.zeros(1, FEW + 1, 1), positions, names)
        return [part[:, :FEW] for part in _parts(made)]

    def alike(length: int, other: list[Tensor]) -> bool:
        return all(map(torch.equal, angles(length), other))

    short, longest = angles(FEW), angles(LONGEST)
    if all(map(torch.equal, short, longest)):
        return None
    low, high = FEW, LONGEST  # the first is short, the last is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if alike(middle, short) else (low, middle)
    return Factors(high, not alike(high, longest))


def _alone(module: Any, x: Tensor, positions: Tensor, names: dict[str, Any]) -> Any:
    """The angles of one row's positions (1, T), by a copy of the module that has seen no other row."""
    other = copy.copy(module)
    other.__dict__["_buffers"] = {name: buffer.to(x.device, copy=True) for name, buffer in module.named_buffers()}
    forward = type(module).forward
    forward(other, x, torch.zeros_like(positions[:, :1]), **names)  # a short row undoes what longer ones left
    return forward(other, x, positions, **names)


def _parts(angles: Any) -> tuple[Tensor, ...]:
    return angles if isinstance(angles, tuple) else (angles,)


# -- in a forward -----------------------------------------------------------------------------------------------------


def _before_forward(backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    backbone.rotary_rows.lengths = _lengths(args, kwargs)


def _lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """(B, 1), the length of each right-padded row; None for a forward that is left as it is."""
    given = kwargs.get("input_ids", args[0] if args else None)
    given = kwargs.get("inputs_embeds") if given is None else given
    if given is None or kwargs.get("past_key_values") is not None or kwargs.get("position_ids") is not None:
        return None
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is None:
        return torch.full((given.size(0), 1), given.size(1))
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape != given.shape[:2]:
        return None
    attended = mask.bool()
    lengths = attended.sum(1)
    whole = torch.stack([lengths, attended.cumprod(1).sum(1)]).cpu()
    return whole[0][:, None] if whole[0].equal(whole[1]) else None


def _forward(module: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The angles of a forward's positions: those of each row by itself, if the rows are known."""
    lengths, factors = module.rotary_rows.lengths, module.rotary_rows.factors
    plain = type(module).forward
    short = lengths is not None and not factors.by_length and int(lengths.max()) < factors.first
    if lengths is None or short or position_ids.ndim != 2:
        return plain(module, x, position_ids, *args, **kwargs)
    names = inspect.signature(plain).bind(module, x, position_ids, *args, **kwargs).arguments
    extra = {name: value for name, value in names.items() if name not in ("self", "x", "position_ids")}
    kinds, kind = factors.of(lengths).unique(return_inverse=True)
    longest = torch.stack([lengths[kind == each].max() for each in range(len(kinds))])
    tables = [
        _parts(_alone(module, x, torch.arange(length, device=position_ids.device)[None], extra))
        for length in longest.tolist()
    ]
    starts = longest.cumsum(0) - longest
    start, last = (values[kind].to(position_ids.device) for values in (starts, longest - 1))
    at = start + torch.minimum(position_ids, last)  # padding has the angles of its row's end
    angles = tuple(torch.cat(parts, dim=1)[0][at] for parts in zip(*tables, strict=True))
    return angles if len(angles) > 1 else angles[0]
