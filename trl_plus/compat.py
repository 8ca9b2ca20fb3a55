"""TRL's configurations, after a check that TRL is not too old."""

from trl_plus.seams import VersionError, check_age, explain

check_age("trl")
try:
    from trl import DPOConfig as TRLDPOConfig
    from trl import KTOConfig as TRLKTOConfig
except ImportError as error:
    if (sentence := explain(error)) is None:
        raise
    raise VersionError(sentence) from None

__all__ = ["TRLDPOConfig", "TRLKTOConfig"]
