"""Engines of installed libraries that would save or resume something else than what was trained."""

from importlib.metadata import version

from packaging.version import Version

from trl_plus.upstream.signatures import VersionError

# accelerate wrote an adapter under FSDP2, and loaded the optimizer from shards, wrongly before these versions
ADAPTERS, SHARDS = "1.15", "1.13"


def check_fsdp2(adapter: bool, shards: bool) -> None:
    """Check that accelerate's FSDP2 resumes a run with the bits that it saved.

    Args:
        adapter: True if an adapter is trained.
        shards: True if checkpoints are saved in shards (`SHARDED_STATE_DICT`).

    Raises:
        VersionError: it does not. The text names the versions that do.
    """
    installed = version("accelerate")
    needed = ADAPTERS if adapter else SHARDS if shards else None
    if needed is None or Version(installed) >= Version(needed):
        return
    what = "an adapter" if adapter else "a sharded optimizer"
    raise VersionError(
        f"accelerate {installed} does not resume {what} under FSDP2 as it was saved. "
        f"Fix: pip install 'accelerate>={needed}'."
    )
