"""One forward pass: row layouts, attention, LM head, and the proofs that they match the model's own forward."""
