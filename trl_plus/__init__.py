"""trl_plus: direct alignment on top of TRL.

The public names are imported on first use, so that `import trl_plus`, the command line's help and the validation of a
recipe cost no import of torch.
"""

from typing import TYPE_CHECKING, Any

from trl_plus._version import __version__

_PUBLIC = {
    "DPOConfig": "trl_plus.trainers.configs",
    "SimPOConfig": "trl_plus.trainers.configs",
    "ORPOConfig": "trl_plus.trainers.configs",
    "CPOConfig": "trl_plus.trainers.configs",
    "KTOConfig": "trl_plus.trainers.configs",
    "DPOTrainer": "trl_plus.trainers",
    "SimPOTrainer": "trl_plus.trainers",
    "ORPOTrainer": "trl_plus.trainers",
    "CPOTrainer": "trl_plus.trainers",
    "KTOTrainer": "trl_plus.trainers",
}

__all__ = [
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "SimPOConfig",
    "SimPOTrainer",
    "__version__",
]

if TYPE_CHECKING:
    from trl_plus.trainers import CPOTrainer, DPOTrainer, KTOTrainer, ORPOTrainer, SimPOTrainer
    from trl_plus.trainers.configs import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'trl_plus' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
