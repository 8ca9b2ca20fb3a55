"""`make_trainer` of the trainers' tests."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("trainers_conftest", Path(__file__).parents[1] / "trainers" / "conftest.py")
_module = module_from_spec(_spec)
_spec.loader.exec_module(_module)
make_trainer = _module.make_trainer
