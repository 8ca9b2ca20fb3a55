"""TRL's configurations, imported after a check that the installed TRL and transformers fit."""

from trl_plus.upstream.signatures import check_seams

check_seams()

from trl import DPOConfig as TRLDPOConfig
from trl import KTOConfig as TRLKTOConfig

__all__ = ["TRLDPOConfig", "TRLKTOConfig"]
