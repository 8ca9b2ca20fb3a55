"""Memory and time of a run before anything is loaded: one step, run on tensors that have shapes but no data."""
