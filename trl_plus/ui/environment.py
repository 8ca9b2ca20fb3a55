"""Versions of what a run depends on, and the devices it can use."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("trl-plus", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")


def versions(packages: Sequence[str] | None = None) -> dict[str, str | None]:
    """Version by package; None if it is not installed. Without names, Python's and those of PACKAGES."""
    found: dict[str, str | None] = {"python": platform.python_version()} if packages is None else {}
    for package in packages or PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def devices() -> dict[str, str]:
    """Description by kind of device."""
    import torch

    found = {"platform": platform.platform(), "cpu": f"{platform.machine()}, {os.cpu_count()} cores"}
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found[f"gpu {index}"] = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        found["gpu"] = "Apple (MPS)" if torch.backends.mps.is_available() else "none"
    return found
