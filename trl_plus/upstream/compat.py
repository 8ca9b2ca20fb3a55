"""TRL's configurations, imported after a check that the installed TRL and transformers fit."""

from trl_plus.upstream.signatures import check_seams

check_seams()

from trl import DPOConfig as TRLDPOConfig  # noqa: E402
from trl import KTOConfig as TRLKTOConfig  # noqa: E402

__all__ = ["TRLDPOConfig", "TRLKTOConfig"]
