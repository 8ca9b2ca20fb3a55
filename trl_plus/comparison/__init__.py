"""Answers of the base and the tuned model to the same prompts."""
