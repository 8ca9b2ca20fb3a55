"""Configurations: TRL's dataclasses plus the fields that our objectives add.

Every field of TRL's `DPOConfig` and `KTOConfig` is kept, so an existing TRL configuration goes on working. A field that
would have no effect under the chosen method is refused instead of ignored.
"""

from dataclasses import MISSING, dataclass, field, fields
from inspect import get_annotations
from typing import Any, ClassVar

from torch import Tensor

from trl_plus import objectives
from trl_plus.methods import FAMILIES, Family
from trl_plus.objectives import Completions
from trl_plus.recipes.options import ONE_OF_THEM, UPSTREAM, exclusions, range_problem
from trl_plus.upstream.compat import TRLDPOConfig, TRLKTOConfig


def _margin_field(smaller: str) -> float:
    return field(
        default=0.0,
        metadata={
            "help": "Above 0: read a `margin` column, a number per pair, and multiply it by this. The product is what "
            f"the chosen reward should exceed the rejected one by (ODPO): the loss reads {smaller}.",
            "at_least": 0,
        },
    )


@dataclass
class _Checks:
    """Fields and validation that our configurations share. A mixin, so that each dataclass keeps TRL's own bases."""

    # TRL fields that this method's loss never reads; setting one is an error
    _without_effect: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[Family]

    layout: str = field(
        default="auto",
        metadata={
            "help": "How the rows of a micro-batch are computed: 'packed' in one row without padding, each prompt "
            "once; 'shared' one padded row per pair, each prompt once; 'rows' as TRL does. 'auto' is 'packed' where "
            "the first batch proves it right, else 'rows', and says why.",
            "choices": ["auto", "packed", "shared", "rows"],
        },
    )
    tokens_per_device: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a micro-batch, each prompt counted once. The rows of a step stay "
            "per_device_train_batch_size x gradient_accumulation_steps x processes; they are computed in micro-batches "
            "filled up to this number, so memory is flat whatever their lengths. A longer row is computed alone.",
            "at_least": 1,
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "transformers' filter of losses that are not finite from the log, which waits for the device at "
            "every micro-batch. `nonfinite` looks at each step once and hides nothing."
        },
    )
    overlong: str = field(
        default="truncate",
        metadata={
            "help": "What to do with rows longer than `max_length`: 'truncate' cuts the end of the completion, 'drop' "
            "leaves the row out, 'error' stops. A row whose prompt alone fills `max_length` is never cut to an empty "
            "completion but dropped. Everything dropped or cut is counted and printed.",
            "choices": ["truncate", "drop", "error"],
        },
    )
    nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is NaN or infinite: 'stop' ends the run before the optimizer step, 'skip' "
            "leaves the step out. Both name the rows.",
            "choices": ["stop", "skip"],
        },
    )
    max_nonfinite_skips: int = field(
        default=3,
        metadata={
            "help": "Steps that `nonfinite: skip` may leave out before the run stops all the same.",
            "at_least": 0,
        },
    )

    def _check_common(self) -> None:
        self._check_declared()
        if self.family.name != "SimPO" and "simpo" in self.loss_type:
            raise ValueError(
                "`loss_type` simpo is a method of its own: use SimPOConfig and SimPOTrainer, in a recipe "
                "`method: simpo`."
            )
        if self.nonfinite == "stop" and not self._is_default("max_nonfinite_skips"):
            raise ValueError("`max_nonfinite_skips` has no effect without `nonfinite: skip`: remove it.")
        for name in self._without_effect:
            if not self._is_default(name):
                raise ValueError(f"`{name}` has no effect with {self.family.name}: remove it.")
        if self.beta < 0 or (self.beta == 0 and self.family.name != "ORPO"):
            raise ValueError(f"`beta` must be positive, got {self.beta}.")

    def _check_declared(self) -> None:
        """Check our fields against the choices, bounds and exclusions in their metadata.

        `loss_type` is a list, which `_check_single_loss` names.

        Raises:
            ValueError: a value is none of its choices or out of its bounds, or two values exclude each other.
        """
        ours = {name for kind in type(self).__mro__ if kind.__module__ == __name__ for name in get_annotations(kind)}
        declared = {spec.name: spec.metadata for spec in fields(self) if spec.name in ours}
        for name, metadata in declared.items():
            value, choices = getattr(self, name), metadata.get("choices")
            if choices is not None and not isinstance(value, list) and value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
            problem = None if value is None else range_problem(name, value, metadata)
            if problem is not None:
                raise ValueError(problem)
        for _, sentence in exclusions({name: getattr(self, name) for name in declared}, declared):
            raise ValueError(sentence)

    def _is_default(self, name: str) -> bool:
        spec = next(f for f in fields(self) if f.name == name)
        default = spec.default if spec.default_factory is MISSING else spec.default_factory()
        return getattr(self, name) == default

    def _check_single_loss(self) -> None:
        if len(self.loss_type) != 1 or self.loss_type[0] not in self.family.losses:
            raise ValueError(
                f"`loss_type` of {self.family.name} must be one of {', '.join(self.family.losses)}, "
                f"got {self.loss_type}; mixes of losses are `method: dpo`."
            )

    def _check_smoothing(self) -> None:
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"`label_smoothing` must be at least 0 and below 0.5, got {self.label_smoothing}.")


# What only a loss with a reference, or only TRL's own DPO loss, reads.
_REFERENCE_FIELDS = (
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
)
_DPO_ONLY_FIELDS = (
    *_REFERENCE_FIELDS,
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)


@dataclass
class DPOConfig(_Checks, TRLDPOConfig):
    """TRL's `DPOConfig`, with `label_smoothing` honoured under `sigmoid` (cDPO) and a choice of the IPO variant."""

    family: ClassVar[Family] = FAMILIES["DPO"]

    ipo_reduction: str = field(
        default="mean",
        metadata={
            "help": "Log-ratios of the IPO loss: 'mean' divides them by the completion's length (the form the authors "
            "confirmed, TRL's), 'sum' leaves them summed over tokens (eq. 17 as written).",
            "choices": ["mean", "sum"],
        },
    )

    margin_scale: float = _margin_field("beta d - margin_scale margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        if self.ipo_reduction not in ("mean", "sum"):
            raise ValueError(f"`ipo_reduction` must be 'mean' or 'sum', got {self.ipo_reduction!r}.")
        for name in ("label_smoothing", "discopop_tau", "ipo_reduction"):
            readers = self.family.readers(name)
            if not self._is_default(name) and not set(readers) & set(self.loss_type):
                raise ValueError(
                    f"`{name}` has no effect with loss_type {self.loss_type}: remove it, or use one of "
                    f"{', '.join(readers)}."
                )
        if self.margin_scale and "sigmoid" not in self.loss_type:
            raise ValueError(
                f"`margin_scale` has no effect with loss_type {self.loss_type}: remove it, or use sigmoid."
            )
        if {"sigmoid", "robust"} & set(self.loss_type):
            self._check_smoothing()
        if "exo_pair" in self.loss_type and self.label_smoothing <= 0:
            raise ValueError("loss_type exo_pair needs a `label_smoothing` above 0; its paper uses 1.0e-3.")
        if not self._is_default("f_alpha_divergence_coef") and self.f_divergence_type != "alpha_divergence":
            raise ValueError("`f_alpha_divergence_coef` has no effect without `f_divergence_type: alpha_divergence`.")
        refuse_ignored(self)


@dataclass
class SimPOConfig(_Checks, TRLDPOConfig):
    """Configuration of SimPO (https://huggingface.co/papers/2405.14734). Defaults: Llama-3-8B base of the SimPO README.

    The target margin is `gamma`, or `gamma_beta_ratio * beta`; give at most one of the two. Zero is a value.
    """

    family: ClassVar[Family] = FAMILIES["SimPO"]
    _without_effect: ClassVar[tuple[str, ...]] = _DPO_ONLY_FIELDS

    beta: float = field(default=2.0, metadata={"help": "Scale of the length-normalised reward, SimPO eq. 4."})
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "Target reward margin of SimPO eq. 6. Give this or `gamma_beta_ratio`.",
            "excludes": {"gamma_beta_ratio": f"{ONE_OF_THEM} (gamma = gamma_beta_ratio * beta)"},
        },
    )
    gamma_beta_ratio: float | None = field(
        default=None,
        metadata={"help": "Target reward margin in units of beta (SimPO repository). 0.5 if `gamma` is not given."},
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": "'sigmoid' (SimPO eq. 6) or 'hinge'.", "choices": list(FAMILIES["SimPO"].losses)},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a preference label is flipped; only with 'sigmoid'."}
    )
    sft_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the token-mean NLL of the chosen completions, added to the loss.", "at_least": 0},
    )

    margin_scale: float = _margin_field("beta (Mw - Ml) - gamma - margin_scale margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        self._check_single_loss()
        self._check_smoothing()
        if self.label_smoothing and self.loss_type == ["hinge"]:
            raise ValueError("`label_smoothing` has no effect with loss_type hinge: remove it, or use sigmoid.")

    @property
    def target_margin(self) -> float:
        """gamma of SimPO eq. 6, from whichever of the two fields was given."""
        if self.gamma is not None:
            return self.gamma
        return self.beta * (0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio)


@dataclass
class CPOConfig(_Checks, TRLDPOConfig):
    """Configuration of CPO (https://huggingface.co/papers/2401.08417)."""

    family: ClassVar[Family] = FAMILIES["CPO"]
    _without_effect: ClassVar[tuple[str, ...]] = _DPO_ONLY_FIELDS

    beta: float = field(default=0.1, metadata={"help": "Scale of the log-likelihood difference."})
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": "'sigmoid' (CPO), 'hinge' or 'ipo'.", "choices": list(FAMILIES["CPO"].losses)},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a preference label is flipped; only with 'sigmoid'."}
    )
    cpo_alpha: float = field(
        default=1.0,
        metadata={"help": "Weight of the token-mean NLL of the chosen completions (the paper: 1).", "at_least": 0},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        self._check_single_loss()
        self._check_smoothing()
        if self.label_smoothing and self.loss_type != ["sigmoid"]:
            raise ValueError("`label_smoothing` has no effect unless loss_type is sigmoid: remove it.")


@dataclass
class ORPOConfig(_Checks, TRLDPOConfig):
    """Configuration of ORPO (https://huggingface.co/papers/2403.07691)."""

    family: ClassVar[Family] = FAMILIES["ORPO"]
    _without_effect: ClassVar[tuple[str, ...]] = (*_DPO_ONLY_FIELDS, "loss_type", "label_smoothing")

    beta: float = field(default=0.1, metadata={"help": "Weight of the odds-ratio term, lambda of ORPO eq. 6."})
    odds: str = field(
        default="sequence",
        metadata={
            "help": "'sequence': odds of the length-normalised likelihood (ORPO eq. 4). 'token': mean over "
            "tokens of each token's own log-odds.",
            "choices": ["sequence", "token"],
        },
    )
    nll_scope: str = field(
        default="completion",
        metadata={
            "help": "Tokens of the NLL term: 'completion', or 'full' for prompt and completion (the authors' code).",
            "choices": ["completion", "full"],
        },
    )
    nll_reduction: str = field(
        default="token",
        metadata={
            "help": "NLL term: 'token' is the mean over all its tokens of the effective batch, 'sequence' the mean "
            "over rows of each row's token mean.",
            "choices": ["token", "sequence"],
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()


@dataclass
class KTOConfig(_Checks, TRLKTOConfig):
    """TRL's `KTOConfig`; rows are shuffled every epoch and a per-device batch of one row works."""

    family: ClassVar[Family] = FAMILIES["KTO"]

    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the training rows: 'random' (reshuffled every epoch with the run's seed), 'sequential' "
            "or 'group_by_length'. Mismatched completions are drawn inside the effective batch, so any order works.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        if self.loss_type not in self.family.losses:
            raise ValueError(f"`loss_type` of KTO must be kto or apo_zero_unpaired, got {self.loss_type!r}.")
        for name in ("desirable_weight", "undesirable_weight"):
            problem = range_problem(name, getattr(self, name), UPSTREAM[name])
            if problem is not None:
                raise ValueError(problem)


# -- losses of DPOTrainer: `loss_type` names to our objectives, and what is left to TRL -----------------------------


LOSSES = FAMILIES["DPO"].losses


def computed_here(args: Any) -> bool:
    """True if our per-pair path computes this configuration. Otherwise TRL's own loss does.

    TRL's variants of the log-ratio itself (f-divergences, LD-DPO, WPO weighting), losses that sort rows, and losses of
    a later TRL stay with TRL.
    """
    plain = args.f_divergence_type == "reverse_kl" and args.ld_alpha is None and not args.use_weighting
    return plain and all(name in LOSSES and LOSSES[name].exact for name in args.loss_type)


def refuse_ignored(args: Any) -> None:
    """Refuse options of ours that TRL's own loss would ignore.

    Raises:
        ValueError: TRL computes the loss, and such an option is set.
    """
    if computed_here(args):
        return
    fix = "remove it, or the f-divergence, ld_alpha, use_weighting or aot that it is combined with."
    if args.label_smoothing and "sigmoid" in args.loss_type:
        raise ValueError(f"`label_smoothing` has no effect on `sigmoid` here, where TRL computes the loss: {fix}")
    for name, default in (("ipo_reduction", "mean"), ("margin_scale", 0.0)):
        if getattr(args, name, default) != default:
            raise ValueError(f"`{name}` has no effect here, where TRL computes the loss: {fix}")


def pair_losses(
    chosen: Completions,
    rejected: Completions,
    loss_types: list[str],
    loss_weights: list[float],
    args: Any,
    margin: Tensor | None = None,
) -> Tensor:
    """(B,): the weighted sum of the losses named. `sft` is a token mean, which the trainer adds.

    Args:
        margin: (B,), for the losses that read one.
    """
    terms = []
    for name, factor in zip(loss_types, loss_weights, strict=True):
        loss = LOSSES[name]
        if loss.objective is None:
            continue
        options = {parameter: getattr(args, key, "mean") for parameter, key in loss.options.items()}
        if loss.margin and margin is not None:
            options["margin"] = margin
        terms.append(factor * getattr(objectives, loss.objective)(chosen, rejected, beta=args.beta, **options))
    return sum(terms) if terms else chosen.total * 0.0
