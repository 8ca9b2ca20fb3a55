"""Imports of other libraries that a command may never use: loaded at their first use.

transformers imports peft and the modules of models for `isinstance` tests, and peft imports bitsandbytes. Together they
take half of the start of a command that makes no model. Only the command line does this, in a process of its own: a
program that imports trl_plus gets these libraries as they are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

in_command = False  # `trl_plus.cli.main` sets it


class _Deferred(ModuleType):
    """A package in the globals of a module that imported it. Reading an attribute loads the package."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # `inspect` asks all modules for `__file__`
            raise AttributeError(name)
        _take_away(self)
        return getattr(import_module(self.__name__), name)


class _OnceLoaded(type):
    """A class for `isinstance` alone: while its module is not loaded, no object is an instance of it."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, getattr(sys.modules.get(cls.__module__), cls.__name__, ()))


def _once_loaded(module: str, name: str) -> type:
    return _OnceLoaded(name, (), {"__module__": module})


def import_training_arguments() -> None:
    """Import transformers' training arguments, and what making them imports, without peft and models."""
    if not in_command or "transformers.trainer_utils" in sys.modules or "peft" in sys.modules:
        return
    import_module("transformers.utils")  # with torch
    transformers: Any = sys.modules["transformers"]
    with _deferred("peft") as peft:
        if peft is not None:
            for name in ("PeftModel", "PeftMixedModel"):
                setattr(peft, name, _once_loaded("peft", name))
        import_module("transformers.trainer_utils")
    if "transformers.modeling_utils" in sys.modules:
        return
    # `transformers` looks its names up when they are first asked for
    transformers.PreTrainedModel = _once_loaded("transformers.modeling_utils", "PreTrainedModel")
    try:
        import_module("transformers.integrations.integration_utils")
    finally:
        del transformers.PreTrainedModel


def import_peft() -> None:
    """Import peft without bitsandbytes, which it only uses with quantized weights."""
    if not in_command:
        return
    with _deferred("bitsandbytes"):
        import_module("peft")


@contextmanager
def _deferred(package: str) -> Iterator[ModuleType | None]:
    """Imports of an installed package get a stand-in inside the block; None if it is loaded or not installed."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is None:
        yield None
        return
    stand_in = _Deferred(package)
    stand_in.__spec__ = spec  # what checks for an installed package read
    stand_in.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[package] = stand_in
    try:
        yield stand_in
    finally:
        _take_away(stand_in)


def _take_away(stand_in: ModuleType) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]
