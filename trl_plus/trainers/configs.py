"""Configurations: TRL's dataclasses plus the fields that our objectives add.

Every field of TRL's `DPOConfig` and `KTOConfig` is kept, so an existing TRL configuration goes on working. A field that
would have no effect under the chosen method is refused instead of ignored.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar

from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from trl_plus.methods import FAMILIES, Family
from trl_plus.trainers.losses import refuse_ignored
from trl_plus.trainers.speed_options import SpeedOptions
from trl_plus.upstream.compat import TRLDPOConfig, TRLKTOConfig

OVERLONG_CHOICES = ("truncate", "drop", "error")


def _overlong_field() -> str:
    return field(
        default="truncate",
        metadata={
            "help": "What to do with rows longer than `max_length`: 'truncate' cuts the end of the completion, 'drop' "
            "leaves the row out, 'error' stops. A row whose prompt alone fills `max_length` is never cut to an empty "
            "completion but dropped. Everything dropped or cut is counted and printed.",
            "choices": list(OVERLONG_CHOICES),
        },
    )


def _margin_field(smaller: str) -> float:
    return field(
        default=0.0,
        metadata={
            "help": "Above 0: read a `margin` column, a number per pair, and multiply it by this. The product is what "
            f"the chosen reward should exceed the rejected one by (ODPO): the loss reads {smaller}."
        },
    )


@dataclass
class _Checks(SpeedOptions):
    """Fields and validation that our configurations share. A mixin, so that each dataclass keeps TRL's own bases."""

    # TRL fields that this method's loss never reads; setting one is an error
    _without_effect: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[Family]

    overlong: str = _overlong_field()
    nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is NaN or infinite: 'stop' ends the run before the optimizer step, 'skip' "
            "leaves the step out. Both name the rows.",
            "choices": ["stop", "skip"],
        },
    )
    max_nonfinite_skips: int = field(
        default=3, metadata={"help": "Steps that `nonfinite: skip` may leave out before the run stops all the same."}
    )

    def __post_init__(self) -> None:
        self._choose_precision()
        super().__post_init__()  # type: ignore[misc]

    def _choose_precision(self) -> None:
        """Turn TRL's default, bfloat16, off without a GPU that has it. With `use_cpu` the CPU computes in it."""
        if self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available():
            return
        if self.bf16 is None and not self.fp16:
            self.bf16 = False
        for name in ("bf16", "bf16_full_eval"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}: true` needs a GPU with bfloat16, and none is found. Fix: remove it, or set "
                    "`use_cpu: true` as well, so that the CPU computes in bfloat16."
                )

    def _check_common(self) -> None:
        if self.overlong not in OVERLONG_CHOICES:
            raise ValueError(f"`overlong` must be one of {', '.join(OVERLONG_CHOICES)}, got {self.overlong!r}.")
        if self.family.name != "SimPO" and "simpo" in self.loss_type:
            raise ValueError(
                "`loss_type` simpo is a method of its own: use SimPOConfig and SimPOTrainer, in a recipe "
                "`method: simpo`."
            )
        self._check_speed()
        if self.nonfinite not in ("stop", "skip"):
            raise ValueError(f"`nonfinite` must be 'stop' or 'skip', got {self.nonfinite!r}.")
        if self.max_nonfinite_skips < 0:
            raise ValueError(f"`max_nonfinite_skips` must not be negative, got {self.max_nonfinite_skips}.")
        if self.nonfinite == "stop" and not self._is_default("max_nonfinite_skips"):
            raise ValueError("`max_nonfinite_skips` has no effect without `nonfinite: skip`: remove it.")
        for name in self._without_effect:
            if not self._is_default(name):
                raise ValueError(f"`{name}` has no effect with {self.family.name}: remove it.")

        if getattr(self, "margin_scale", 0.0) < 0:
            raise ValueError(f"`margin_scale` must not be negative, got {self.margin_scale}.")
        if self.beta < 0 or (self.beta == 0 and self.family.name != "ORPO"):
            raise ValueError(f"`beta` must be positive, got {self.beta}.")

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
        default=None, metadata={"help": "Target reward margin of SimPO eq. 6. Give this or `gamma_beta_ratio`."}
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
        default=0.0, metadata={"help": "Weight of the token-mean NLL of the chosen completions, added to the loss."}
    )

    margin_scale: float = _margin_field("beta (Mw - Ml) - gamma - margin_scale margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        self._check_single_loss()
        self._check_smoothing()
        if self.label_smoothing and self.loss_type == ["hinge"]:
            raise ValueError("`label_smoothing` has no effect with loss_type hinge: remove it, or use sigmoid.")
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError("Give `gamma` or `gamma_beta_ratio`, not both: gamma = gamma_beta_ratio * beta.")
        if self.sft_weight < 0:
            raise ValueError(f"`sft_weight` must not be negative, got {self.sft_weight}.")

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
        default=1.0, metadata={"help": "Weight of the token-mean NLL of the chosen completions (the paper: 1)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_common()
        self._check_single_loss()
        self._check_smoothing()
        if self.label_smoothing and self.loss_type != ["sigmoid"]:
            raise ValueError("`label_smoothing` has no effect unless loss_type is sigmoid: remove it.")
        if self.cpo_alpha < 0:
            raise ValueError(f"`cpo_alpha` must not be negative, got {self.cpo_alpha}.")


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
        for name, choices in (
            ("odds", ("sequence", "token")),
            ("nll_scope", ("completion", "full")),
            ("nll_reduction", ("token", "sequence")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")


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
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
