"""Whatever is fed to the recipe loader and the dataset reader, only RecipeError and DataError come out, and soon."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trl_plus.errors import DataError, RecipeError
from trl_plus.methods import METHODS
from trl_plus.recipes.keys import all_keys
from trl_plus.recipes.recipe import load_recipe

SHORT, LONG = 500, 10_000
KEYS = [*sorted(all_keys()), "method", "<<", "zzz"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([*METHODS, "~x", "\0"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
PIECES = st.sampled_from(
    ["method: ", "simpo", "beta: ", "\n", " ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!int ", "!!binary ", "? ", ": ",
     "<<: ", "|\n", "'", '"', "#", "%YAML", "---", "...", "1e-6", "2024-13-01", "0o9", "!!timestamp ", "\t", "\x00"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=25).map("".join))
RECIPES = st.one_of(
    st.binary(max_size=200),
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8).map(
        lambda values: json.dumps({"method": "simpo", "model_name_or_path": "m", "output_dir": "o", **values}).encode()
    ),
)
WORDS = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([f"--{key}" for key in KEYS])), max_size=4)


def load(folder, content, words):
    path = Path(folder) / "r.yaml"
    path.write_bytes(content)
    with suppress(RecipeError):
        assert "method: " in load_recipe(str(path), words).to_yaml()


ROW_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
COLUMNS = ("prompt", "chosen", "rejected", "completion", "label", "weight", "conversations")
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), ROW_VALUES, max_size=5), max_size=4)
FILES = st.tuples(
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    st.one_of(
        st.binary(max_size=100),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        ROWS.map(lambda rows: json.dumps(rows).encode()),
    ),
)


def read(folder, file, paired):
    from trl_plus.data.loading import DataRequest
    from trl_plus.data.loading import load as load_data

    suffix, content = file
    path = Path(folder) / f"rows{suffix}"
    path.write_bytes(content)
    with suppress(DataError):
        assert len(load_data(DataRequest(paired_method=paired, name=str(path))).train) > 0


def fuzz(examples):
    return settings(max_examples=examples, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_recipes(examples, tmp_path):
    fuzz(examples)(given(RECIPES, WORDS)(lambda content, words: load(tmp_path, content, words)))()


@pytest.mark.parametrize("examples", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_rows(examples, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    fuzz(examples)(given(FILES, st.booleans())(lambda file, paired: read(tmp_path, file, paired)))()
