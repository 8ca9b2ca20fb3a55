"""The range of TRL that trl_plus works with, checked before anything of TRL is touched, and TRL's configurations."""

from importlib.metadata import version

from packaging.version import Version

SUPPORTED_TRL = ("1.15", "1.17")

_installed = Version(version("trl"))
if not Version(SUPPORTED_TRL[0]) <= _installed < Version(SUPPORTED_TRL[1]):
    raise ImportError(
        f"trl_plus works with trl>={SUPPORTED_TRL[0]},<{SUPPORTED_TRL[1]}, but trl {_installed} is installed: "
        f"pip install 'trl>={SUPPORTED_TRL[0]},<{SUPPORTED_TRL[1]}'."
    )

from trl import DPOConfig as TRLDPOConfig  # noqa: E402
from trl import KTOConfig as TRLKTOConfig  # noqa: E402

__all__ = ["SUPPORTED_TRL", "TRLDPOConfig", "TRLKTOConfig"]
