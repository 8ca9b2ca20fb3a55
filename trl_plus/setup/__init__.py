"""From a validated recipe to live objects: datasets, tokenizer, model, trainer."""
