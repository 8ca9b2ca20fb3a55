"""A run that held out a part of its data, and data that changed afterwards."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app

SAID = "its data has changed since"


def notes(*words):
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return " ".join(json.loads(done.stdout)["notes"])


@pytest.fixture(scope="module")
def file(tmp_path_factory, pair_rows):
    path = tmp_path_factory.mktemp("data") / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(20)))
    return path


@pytest.fixture(scope="module")
def run(train_tiny, file):
    """A run with `eval_fraction`."""
    return train_tiny("simpo", [], [], dataset_name=str(file), eval_fraction=0.3)


@pytest.fixture
def data(file):
    """The run's file, which is as it was after the test."""
    text = file.read_text()
    yield file
    file.write_text(text)


def test_the_same_data_is_no_news(run):
    assert SAID not in notes(run)


@pytest.mark.parametrize("how", ["a row more", "another order", "a word"])
def test_changed_data_is_said(how, run, data, pair_rows):
    rows = data.read_text().splitlines()
    if how == "a row more":
        rows.append(json.dumps(pair_rows(1, 9)[0]))
    elif how == "another order":
        rows.reverse()
    else:
        rows = [row.replace(" basil", " Basil") for row in rows]
    data.write_text("\n".join(rows) + "\n")
    assert SAID in notes(run)
    assert SAID not in notes(run, "max_eval_rows=4")  # other rows were asked for
    assert SAID not in notes(run, "--rows", 4)


def test_a_run_without_metrics_is_evaluated(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text("{")
    assert SAID not in notes(tmp_path / "run")
