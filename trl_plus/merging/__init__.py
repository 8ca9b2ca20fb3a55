"""An adapter merged into its base weights: written whole or not at all, and checked against the adapter."""
