"""A local folder in the layout of the hub: configs of its README.md, rows in subfolders."""

import json

import pytest

from trl_plus.data.reading import read_splits
from trl_plus.errors import DataError

CARD = """---
license: mit
configs:
- config_name: easy
  data_files:
  - split: train
    path: easy/train.jsonl
  - split: test
    path: easy/held-out.jsonl
- config_name: hard
  data_files: hard/*.jsonl
---
# Pairs
"""


def write(path, words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": "p", "chosen": word, "rejected": "r"}) + "\n" for word in words))


@pytest.fixture
def folder(tmp_path):
    for name, words in (("easy/train", "ab"), ("easy/held-out", "c"), ("hard/rows", "de")):
        write(tmp_path / f"{name}.jsonl", words)
    return tmp_path


def test_a_config_of_the_card(folder):
    (folder / "README.md").write_text(CARD)
    easy, hard = (read_splits(str(folder), config, False) for config in ("easy", "hard"))
    assert {name: rows["chosen"][:] for name, rows in easy.items()} == {"train": ["a", "b"], "test": ["c"]}
    assert {name: rows["chosen"][:] for name, rows in hard.items()} == {"train": ["d", "e"]}
    assert [row["chosen"] for row in read_splits(str(folder), "hard", True)["train"]] == ["d", "e"]


@pytest.mark.parametrize("config, said", [("esay", "has no config 'esay'"), (None, "needs a config")])
def test_another_config_is_refused_with_the_names(config, said, folder):
    (folder / "README.md").write_text(CARD)
    with pytest.raises(DataError, match=f"{said}: set `dataset_config` to easy or hard"):
        read_splits(str(folder), config, False)


def test_rows_in_subfolders(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00001.jsonl", "ab")
    write(tmp_path / "data" / "test-00000-of-00001.jsonl", "c")
    splits = read_splits(str(tmp_path), None, False)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 1}


def test_a_config_of_plain_files_is_refused(tmp_path):
    write(tmp_path / "rows.jsonl", "ab")
    with pytest.raises(DataError, match=r"README\.md names no configs: remove it"):
        read_splits(str(tmp_path), "easy", False)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nconfigs: none\n")
    assert len(read_splits(str(tmp_path), None, False)["train"]) == 2


def test_a_recipe_with_a_config(folder, tmp_path_factory):
    from trl_plus.recipes.recipe import load_recipe

    (folder / "README.md").write_text(CARD)
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    keys = {
        "method": "dpo", "model_name_or_path": "bundled:quickstart/model", "output_dir": "out",
        "dataset_name": str(folder), "dataset_config": "hard",
    }  # fmt: skip
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
    load_recipe(str(path))
