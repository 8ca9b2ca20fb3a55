"""Small datasets in shapes that people really have (`cases/`), and what must come of each.

Keys of a case: `rows`; `kind` of the file; `recipe`; `template`, one that TRL ships; `plain`, a model without a chat
template; `tokens`, words in what is trained on, by side; `never`, words that must not be there; `once`, words that are
in each prompt once; `found`, findings; `refused`, words of a refusal; `follow`, the converter that the first message
must name.
"""

import json
from pathlib import Path

import pytest
import trl

from tests.preflight.toys import build_toy, save_toy
from trl_plus.comparison.answers import as_text
from trl_plus.comparison.prompts import as_conversations, held_out_prompts, read_prompts
from trl_plus.data.loading import load
from trl_plus.data.reading import read_files
from trl_plus.errors import DataError
from trl_plus.estimate.step import sampled
from trl_plus.evaluation.rows import held_out_rows
from trl_plus.preflight.findings import Severity
from trl_plus.preflight.previews import preview_source
from trl_plus.preflight.run import Extent, preflight
from trl_plus.preflight.source import open_run
from trl_plus.recipes.recipe import recipe_from
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import load_processor
from trl_plus.ui.console import quiet_maps

FILES = sorted((Path(__file__).parent / "cases").glob("*.json"))
CASES = [(path.stem, case) for path in FILES for case in json.loads(path.read_text(encoding="utf-8"))]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A model folder with a chat template, and one without."""
    found = {}
    for name in ("chat", "plain"):
        toy = build_toy()
        toy.chat_template = toy.chat_template if name == "chat" else None
        found[name] = save_toy(tmp_path_factory.mktemp(name), toy)
    return found


def objects_of(case, models, path, folder, **more):
    values = {"method": "dpo", "model_name_or_path": models["plain" if case.get("plain") else "chat"],
              "dataset_name": str(path), "output_dir": str(folder / "run"), "max_length": 4096, "bf16": False,
              **case.get("recipe", {}), **more}  # fmt: skip
    if "template" in case:
        values["chat_template_path"] = str(TEMPLATES / case["template"])
    return build(recipe_from(values, "a case"))


def shown(previews):
    """What is trained on of each row: {"prompt": text, side: text}."""
    texts = []
    for preview in previews:
        row = {side: "".join(token.text for token in tokens if token.loss) for side, tokens in preview.sides.items()}
        first = next(iter(preview.sides.values()))
        texts.append({"prompt": "".join(token.text for token in first if not token.loss), **row})
    return texts


def trained(objects, processor, dataset):
    """The same, of the dataset that the trainer makes of a dataset."""
    from trl_plus.trainers.rows import tokenize

    with quiet_maps():
        return decoded(tokenize(objects.args, processor, dataset), processor)


def decoded(rows, processor):
    """The same, of tokenized rows."""
    sides = [name for name in ("chosen", "rejected", "completion") if f"{name}_ids" in rows.column_names]
    tokenizer = getattr(processor, "tokenizer", processor)
    return [
        {name: tokenizer.decode(row[f"{name}_ids"], clean_up_tokenization_spaces=False) for name in ("prompt", *sides)}
        for row in rows
    ]


def sorted_rows(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def asked(prompts, processor):
    """Prompts as a comparison gives them to the model."""
    return sorted({as_text(processor, prompt) for prompt in prompts})


def check_commands(case, path, objects, processor, same):
    """Evaluation, comparison and estimate read the same tokens as training; `same` are the rows that are trained on."""
    held_out = held_out_rows(objects, processor, -1, None)
    assert sorted_rows(decoded(held_out.rows, processor)) == sorted_rows(same)
    with quiet_maps():
        data = load(objects.data)
    count = lambda text: len(processor(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    if data.format.conversational:
        prompts = {row["prompt"] for row in same}  # without what only the prompt for an answer has, as `<think>`
        alike = lambda texts: all(any(text.startswith(prompt) for prompt in prompts) for text in texts)  # noqa: E731
        found = asked(held_out_prompts(data.eval, 50), processor)
        assert len(found) == len(prompts)
        assert alike(found)
        own = not case.get("recipe", {}).keys() & {"converter", "columns"} and "follow" not in case
        if own and case.get("kind", "jsonl") == "jsonl" and "prompt" in case["rows"][0]:
            assert asked(as_conversations(read_prompts(str(path), None)), processor) == found
        sizes = {total for row in sampled(objects, data.train, processor) for total, _ in row.sides}
        assert sizes == {count(row["prompt"] + text) for row in same for side, text in row.items() if side != "prompt"}


def check_trainer(case, path, objects, processor, same):
    """A Python trainer makes the same tokens of the file, or refuses the rows if `same` is None."""
    if case.get("recipe", {}).keys() & {"converter", "columns"} or "follow" in case:
        return
    with quiet_maps():
        dataset = read_files([path], streaming=False)
    if same is not None:
        assert sorted_rows(trained(objects, processor, dataset)) == sorted_rows(same)
        return
    with pytest.raises(ValueError, match=r"[Ff]ix: |: write|correct|Remove|answer the same prompt|needs"):
        trained(objects, processor, dataset)


REFUSED_EVERYWHERE = {"D103", "D108", "D109", "D112", "D114"}


@pytest.mark.parametrize("kind, case", CASES, ids=[f"{kind}-{case['what']}" for kind, case in CASES])
def test_case(write, tmp_path, models, kind, case):
    path = write(f"rows.{case.get('kind', 'jsonl')}", case["rows"])
    objects = objects_of(case, models, path, tmp_path)
    if "follow" in case:
        with pytest.raises(DataError, match=f"set `converter: {case['follow']}`"):
            load(objects.data)
        objects = objects_of(case, models, path, tmp_path, converter=case["follow"])
    processor = load_processor(objects)
    source = open_run(objects, processor)
    result = preflight(source, Extent(rows=None, previews=50))
    codes = {finding.code for finding in result.findings if finding.severity is not Severity.INFO}
    if "refused" in case:
        (said,) = [finding.sentence for finding in result.findings if finding.code == "D101"]
        assert all(word in said for word in case["refused"])
        return
    assert set(case.get("found", ())) <= codes
    if codes & REFUSED_EVERYWHERE:
        check_trainer(case, path, objects, processor, None)
        with pytest.raises(DataError):
            preview_source(source, "train", 50, None)
        with pytest.raises(DataError):
            sampled(objects, load(objects.data).train, processor)
        with_eval = objects_of(case, models, path, tmp_path, eval_dataset_name=str(path))
        with pytest.raises(DataError):
            held_out_rows(with_eval, processor, -1, None)
    if "tokens" not in case:
        return
    if case.get("clean", True):
        ends = {"D401", "D402"} if "template" in case else set()  # of templates with other tokens than the toy's
        known = {"D701", "D205", "D220", *ends}  # D220: one side thinks
        assert codes <= known, [(finding.code, finding.sentence) for finding in result.findings]
    texts = shown(result.previews)
    for side, words in case["tokens"].items():
        assert all(any(word in row[side] for row in texts) for word in words), texts
    assert not [word for word in case.get("never", ()) for row in texts for text in row.values() if word in text], texts
    assert all(row["prompt"].count(word) == 1 for word in case.get("once", ()) for row in texts)
    assert sorted_rows(texts) == sorted_rows(trained(objects, processor, load(objects.data).train))
    assert sorted_rows(texts) == sorted_rows(shown(preview_source(source, "train", 50, None)))
    if not codes & REFUSED_EVERYWHERE:
        more = {"converter": case["follow"]} if "follow" in case else {}
        check_trainer(case, path, objects, processor, texts)
        with_eval = objects_of(case, models, path, tmp_path, eval_dataset_name=str(path), **more)
        check_commands(case, path, with_eval, processor, texts)
