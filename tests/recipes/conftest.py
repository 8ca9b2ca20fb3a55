"""A recipe file on disk, from text or from keys."""

import pytest
import yaml

BASE = {"method": "simpo", "model_name_or_path": "org/model", "dataset_name": "org/data", "output_dir": "out"}


@pytest.fixture
def write(tmp_path):
    """Writes a recipe and gives its path. Keywords override BASE; None leaves a key out; `text` is written as it is."""

    def _write(text=None, **keys):
        path = tmp_path / "r.yaml"
        if text is None:
            text = yaml.safe_dump({k: v for k, v in {**BASE, **keys}.items() if v is not None}, sort_keys=False)
        path.write_text(text)
        return str(path)

    return _write
