"""The model card: what was trained, on what, how, and whom to cite. Neither torch nor TRL is imported."""

from trl_plus.model_card.card import Card, Part, card_text, is_ours, merged_text

__all__ = ["Card", "Part", "card_text", "is_ours", "merged_text"]
