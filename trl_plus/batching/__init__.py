"""From tokenized rows to tensors: what a micro-batch holds besides TRL's own keys, and KTO's mismatched rows."""

from trl_plus.batching.collators import RowExtras
from trl_plus.batching.partners import KLRow, kl_batch, mismatched_partners, read_batches, rows_of

__all__ = ["KLRow", "RowExtras", "kl_batch", "mismatched_partners", "read_batches", "rows_of"]
