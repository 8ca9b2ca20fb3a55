"""An adapter merged into its base weights: written atomically, and checked against the adapter."""
