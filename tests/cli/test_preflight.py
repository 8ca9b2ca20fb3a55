"""`trl-plus preflight` and `preview`, and the look that `train` takes first: what they print and how they exit."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from trl_plus.cli import app
from trl_plus.cli.arguments import normalise
from trl_plus.preflight.as_json import schema
from trl_plus.training.run import _named


def call(*words):
    return CliRunner().invoke(app, normalise([str(word) for word in words]))


@pytest.fixture
def recipe(tmp_path, tiny_model_dir, pair_rows, monkeypatch):
    """recipe(rows, **keys) writes the rows and a recipe for them; gives the recipe's path."""
    monkeypatch.chdir(tmp_path)

    def _write(rows=None, **keys):
        rows = pair_rows(24) if rows is None else rows
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "method": "simpo",
            "model_name_or_path": tiny_model_dir,
            "dataset_name": "./rows.jsonl",
            "output_dir": "out",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            **keys,
        }
        (tmp_path / "r.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
        return str(tmp_path / "r.yaml")

    return _write


def with_identical_sides(rows, places=(3, 7)):
    for place in places:
        rows[place] = {**rows[place], "rejected": rows[place]["chosen"]}
    return rows


def with_scores_reversed(rows):
    """A warning and no error."""
    return [{**row, "score_chosen": 1.0, "score_rejected": 2.0 if i == 5 else 0.0} for i, row in enumerate(rows)]


# -- preflight ------------------------------------------------------------------------------------------------------


def test_clean_rows_exit_with_0(recipe):
    result = call("preflight", recipe())
    assert result.exit_code == 0, result.output
    assert "No errors" in result.stdout
    assert "24 rows" in result.stdout


def test_errors_exit_with_3_and_name_the_rows(recipe, pair_rows):
    result = call("preflight", recipe(with_identical_sides(pair_rows(24))))
    assert result.exit_code == 3
    for word in ("D204", "row 3", "row 7", "Fix"):
        assert word in result.stdout


def test_warnings_exit_with_3_only_when_strict(recipe, pair_rows):
    path = recipe(with_scores_reversed(pair_rows(24)))
    assert call("preflight", path).exit_code == 0
    assert call("preflight", path, "--strict").exit_code == 3


def test_json_is_one_object_of_the_schema_and_nothing_else(recipe, pair_rows):
    from jsonschema import validate

    result = call("preflight", recipe(with_identical_sides(pair_rows(24))), "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    validate(found, schema())
    errors = [finding for finding in found["findings"] if finding["severity"] == "error"]
    assert [(error["code"], error["count"], [e["row"] for e in error["examples"]]) for error in errors] == [
        ("D204", 2, [3, 7])
    ]


def test_html_is_written(recipe, tmp_path):
    result = call("preflight", recipe(), "--html", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "<!doctype html>" in (tmp_path / "page.html").read_text().lower()
    assert "page.html" in result.stdout


def test_html_that_cannot_be_written_is_one_sentence(recipe, tmp_path):
    result = call("preflight", recipe(), "--html", tmp_path / "none" / "page.html")
    assert result.exit_code == 2
    assert "--html" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_dataset_without_a_model_is_looked_at_as_text(recipe, pair_rows):
    recipe(with_identical_sides(pair_rows(24)))
    result = call("preflight", "rows.jsonl")
    assert result.exit_code == 3
    assert "D204" in result.stdout
    assert "--model" in result.stdout


def test_a_dataset_with_a_model_is_looked_at_as_tokens(recipe, tiny_model_dir):
    recipe()
    result = call("preflight", "rows.jsonl", "--model", tiny_model_dir, "--method", "simpo", "max_length=40")
    assert result.exit_code == 0
    assert "D503" in result.stdout


def test_a_limit_that_drops_every_row_is_an_error(recipe):
    result = call("preflight", recipe(max_length=4))
    assert result.exit_code == 3
    assert "D501" in result.stdout


def test_labelled_rows_are_taken_for_kto(recipe, unpaired_rows, tiny_model_dir):
    recipe(unpaired_rows(24))
    found = json.loads(call("preflight", "rows.jsonl", "--model", tiny_model_dir, "--json").stdout)
    assert found["method"] == "kto"
    assert found["splits"][0]["labels"] == {"true": 12, "false": 12}


def test_rows_limits_what_is_looked_at_and_says_so(recipe):
    result = call("preflight", recipe(), "--rows", 5)
    assert "5 of 24 train rows were looked at" in " ".join(result.stdout.split())
    whole = json.loads(call("preflight", recipe(), "--rows", 5, "--all", "--json").stdout)
    assert whole["splits"][0]["checked"] == 24


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["none.jsonl"], "does not exist"),
        (["none.yaml"], "none.yaml"),
        (["rows.jsonl", "--method", "simop"], "simpo"),
        (["r.yaml", "max_lenght=3"], "max_length"),
        (["rows.jsonl", "--model", "./nowhere"], "nowhere"),
        (["rows.jsonl", "--with-model"], "--model"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_sentence(recipe, words, named):
    recipe()
    result = call("preflight", *words)
    assert result.exit_code == 2, result.output
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_columns_that_do_not_fit_are_an_error_of_the_data(recipe):
    result = call("preflight", recipe([{"question": "a", "answer": "b"}]))
    assert result.exit_code == 3
    assert "D101" in result.stdout


def test_with_model_scores_pairs(recipe, pair_rows):
    rows = pair_rows(24)
    for row in rows[:4]:  # nothing of the texts differs for a model but their last character
        row["rejected"] = row["chosen"]
    result = call("preflight", recipe(rows[4:]), "--with-model")
    assert result.exit_code == 0, result.output
    assert "20 pairs were scored with the model" in " ".join(result.stdout.split())


# -- preview --------------------------------------------------------------------------------------------------------


def test_preview_shows_what_is_in_the_loss_and_what_is_cut(recipe, pair_rows):
    shown = call("preview", recipe(max_length=40), "-n", 1).stdout
    assert "row 0" in shown
    assert "⟦" in shown  # in the loss
    assert "✂" in shown  # cut
    assert "‹<|im_start|>›" in shown


def test_preview_of_one_row(recipe, pair_rows):
    rows = pair_rows(24)
    shown = " ".join(call("preview", recipe(rows), "--row", 17).stdout.split())
    assert "row 17" in shown
    assert rows[17]["prompt"][0]["content"].split()[0] in shown
    assert "row 16" not in shown


def test_preview_of_a_row_that_is_not_there(recipe):
    result = call("preview", recipe(), "--row", 24)
    assert result.exit_code == 2
    assert "row 24" in result.stderr


def test_preview_of_a_row_that_cannot_be_tokenized_says_why(recipe, pair_rows):
    rows = pair_rows(24)
    rows[4]["chosen"].append({"role": "user", "content": "and?"})
    result = call("preview", recipe(rows), "--row", 4)
    assert result.exit_code == 2
    assert "D107" in result.stderr


def test_preview_of_a_dataset_needs_a_model(recipe):
    recipe()
    result = call("preview", "rows.jsonl")
    assert result.exit_code == 2
    assert "--model" in result.stderr


# -- the look that `train` takes first ------------------------------------------------------------------------------


def test_train_stops_on_errors_before_the_model_is_loaded(recipe, pair_rows, tmp_path):
    result = call("train", recipe(with_identical_sides(pair_rows(24))))
    assert result.exit_code == 3
    for word in ("D204", "Rows 3, 7.", "--no-preflight"):
        assert word in result.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_no_preflight_trains_all_the_same(recipe, pair_rows, tmp_path):
    result = call("train", recipe(with_identical_sides(pair_rows(24))), "--no-preflight")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "metrics.json").exists()


def test_warnings_do_not_stop_train(recipe, pair_rows):
    result = call("train", recipe(with_scores_reversed(pair_rows(24))))
    assert result.exit_code == 0, result.output
    assert "1 warning in 24 train rows: D" in result.stdout


def test_train_names_at_most_three_warnings():
    found = [SimpleNamespace(code=f"D{number}", split="train", title="odd") for number in range(501, 506)]
    assert _named(found) == "D501 train: odd; D502 train: odd; D503 train: odd; and 2 more"
    assert _named(found[:1]) == "D501 train: odd"


def test_the_look_changes_no_weight(recipe, tmp_path):
    from safetensors.torch import load_file

    weights = []
    for words in ([], ["--no-preflight"]):
        assert call("train", recipe(), *words).exit_code == 0
        weights.append(load_file(tmp_path / "out" / "model.safetensors"))
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
