"""The JSON of a preflight: it fits its schema, the schema leaves out no key, and any text and number goes in."""

import json
import math

import jsonschema
import numpy as np
import pytest

from trl_plus.preflight.as_json import SCHEMA_VERSION, as_json, json_text, schema
from trl_plus.preflight.findings import Lengths, Split


def strict(node):
    """The schema, allowing no key that it does not describe."""
    if isinstance(node, dict):
        node = {key: strict(value) for key, value in node.items()}
        if "properties" in node and "required" in node:
            assert set(node["required"]) == set(node["properties"])
            node["additionalProperties"] = False
        return node
    return [strict(item) for item in node] if isinstance(node, list) else node


def check(value):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(strict(schema())).validate(value)


def test_the_output_fits_the_schema(result):
    check(json.loads(json_text(result())))
    check(as_json(result()))
    check(as_json(result(model=None, max_length=None, splits=[], findings=[], previews=[], notes=[])))


def test_every_key_has_a_description():
    found = schema()
    for name, part in {"root": found, **found["$defs"]}.items():
        for key, value in part.get("properties", {}).items():
            plain = name in ("preview", "root") and key in ("row", "split", "splits", "findings", "previews")
            assert plain or "description" in value or "enum" in value or (name == "token" and key == "text"), (
                name,
                key,
            )


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"findings": [{}]}, {"counts": {"error": -1}}, {"extra": 1}])
def test_the_schema_refuses(result, change):
    with pytest.raises(jsonschema.ValidationError):
        check({**as_json(result()), **change})


def test_what_it_says(result):
    value = as_json(result())
    assert value["schema_version"] == SCHEMA_VERSION == 1
    assert value["counts"] == {"error": 1, "warning": 2, "info": 1}
    assert (value["fails"], value["fails_strict"]) == (True, True)
    (found,) = [finding for finding in value["findings"] if finding["code"] == "D105"]
    assert found["examples"] == [{"row": 17, "detail": "Yes, of course."}, {"row": 88, "detail": "No."}]
    assert (found["count"], found["checked"], found["share"]) == (4, 200, 0.02)
    train, evaluation = value["splits"]
    assert (train["dropped"], train["cut"], train["labels"]) == (3, {"chosen": 7, "rejected": 5}, None)
    assert (evaluation["rows"], evaluation["labels"]) == (None, {"true": 15, "false": 5})
    assert train["differences"] == [[10, 5], [10, 5], [3, 9], [4, 4]]
    assert value["previews"][0]["sides"]["rejected"][-1] == {
        "text": "</s>",
        "loss": True,
        "special": True,
        "cut": False,
    }


def test_nothing_is_clipped_and_any_text_comes_back(result, finding):
    texts = ["\ud800", "\0", "\u202e\x1b[2J", "😀", "y" * 1_000_000, "</script>"]
    text = json_text(result(findings=[finding(sentence=item) for item in texts]))
    text.encode("ascii")
    assert [found["sentence"] for found in json.loads(text)["findings"]] == texts


def test_numbers_of_numpy_and_of_no_rows(result, finding):
    lengths = Lengths("chosen", list(np.arange(3)), list(np.zeros(2, int)), {"0.5": math.nan}, np.float32("nan"))
    split = Split(
        "train", np.int64(0), np.int64(0), [lengths], [(np.int64(1), np.int64(2))], cut={"chosen": np.int64(1)}
    )
    value = json.loads(json_text(result(splits=[split], findings=[finding(count=np.int64(1), checked=np.int64(2))])))
    check(value)
    assert value["splits"][0]["lengths"][0]["mean"] is None
    assert value["splits"][0]["lengths"][0]["quantiles"] == {"0.5": None}
