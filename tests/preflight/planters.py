"""All planters. The defects that depend on a tokenizer, or are of a dataset as a whole, have tests of their own."""

from tests.preflight import plant_content, plant_reasoning, plant_shape, plant_turns
from tests.preflight.planting import PLANTERS, Field, Planter

__all__ = ["PLANTERS", "Field", "Planter", "plant_content", "plant_reasoning", "plant_shape", "plant_turns"]
