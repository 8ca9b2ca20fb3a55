"""Versions of what a run depends on, read from package metadata: nothing is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("trl-plus", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")


def versions() -> dict[str, str | None]:
    """Version by package, and Python's; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
