"""Held-out rows under a base model and a tuned one: rewards, margins, lengths, log-ratios, with intervals."""
