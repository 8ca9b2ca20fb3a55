"""A training run, from a recipe to a trained, evaluated and saved model."""
