"""What a run tells its user: held-out figures, generations before and after, versions."""
