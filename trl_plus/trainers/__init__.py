"""Trainers. Imported on first use, like everything public, and not before TRL and transformers are found to fit."""

from typing import Any

import trl_plus.upstream.compat  # noqa: F401  checks the versions

_PUBLIC = {
    "DPOTrainer": "trl_plus.trainers.dpo",
    "SimPOTrainer": "trl_plus.trainers.paired",
    "ORPOTrainer": "trl_plus.trainers.paired",
    "CPOTrainer": "trl_plus.trainers.paired",
    "KTOTrainer": "trl_plus.trainers.kto",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'trl_plus.trainers' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
