"""The card of every method: the method by its right name, whom to cite, what was trained on what, and how well."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard

from trl_plus.methods import FAMILIES, METHODS
from trl_plus.recipes.keys import config_keys
from trl_plus.recipes.recipe import load_recipe
from trl_plus.runs.model_card import Card, Part, card_text, is_ours, merged_text
from trl_plus.setup.objects import build
from trl_plus.setup.trainer import card_of

# method of a recipe -> (what the card calls it, a paper it cites)
NAMES = {
    "simpo": ("SimPO", "2405.14734"),
    "orpo": ("ORPO", "2403.07691"),
    "cpo": ("CPO", "2401.08417"),
    "kto": ("KTO", "2402.01306"),
    "dpo": ("DPO", "2305.18290"),
    "cdpo": ("cDPO", "ericmitchell.ai/cdpo.pdf"),
    "odpo": ("ODPO", "2402.10571"),
    "ipo": ("IPO", "2310.12036"),
    "hinge": ("DPO with a hinge loss", "2309.06657"),
    "robust": ("robust DPO", "2403.00409"),
    "dpo_norm": ("length-normalised DPO", "2411.15124"),
    "apo_zero": ("APO-zero", "2408.06266"),
    "apo_down": ("APO-down", "2408.06266"),
    "apo_zero_unpaired": ("APO-zero on single labelled completions", "2408.06266"),
}


def read(folder):
    """(metadata, body) of a card."""
    card = ModelCard.load(folder / "README.md")
    return card.data, card.text


def test_every_method_is_here():
    assert NAMES.keys() == METHODS.keys()


@pytest.mark.parametrize("method", NAMES)
def test_method_and_paper(method, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"method: {method}\nmodel_name_or_path: org/model\ndataset_name: org/data\noutput_dir: out\nuse_cpu: true\n"
    )
    text = card_text(card_of(build(load_recipe(str(path)))))
    name, paper = NAMES[method]
    assert f"Trained with {name} ([" in text
    assert paper in text.split("## Cite")[1]
    assert text.count("```bibtex") == 2  # the method's and TRL's
    assert f"- {method}\n" in text.split("---")[1]  # a tag


def test_every_loss_has_a_paper():
    losses = FAMILIES["DPO"].losses
    for loss in config_keys("DPOConfig")["loss_type"].choices:
        assert loss in losses, loss
    assert {name for name, loss in losses.items() if loss.paper is None} == {"sft"}
    for loss in losses.values():
        assert loss.paper is None or re.fullmatch(r"\d{4}\.\d{5}", loss.paper.arxiv or "2305.18290")


def test_a_mix_names_and_cites_all_its_losses():
    mix = FAMILIES["DPO"].named(["sigmoid", "bco_pair", "sft"])
    text = card_text(Card(name="m", methods=mix, base="org/model"))
    assert "Trained with DPO ([" in text
    assert " and BCO on pairs ([" in text
    assert " and likelihood of the chosen side (NLL) by" in text
    assert text.count("@misc") == 2


def test_a_run_of_the_command_line(simpo_run, tiny_model_dir):
    """LoRA, held-out rows, local data and model: nothing local is in the metadata, no path of this machine anywhere."""
    data, body = read(simpo_run)
    assert data.library_name == "peft"
    assert data.base_model is data.datasets is None
    assert {"simpo", "lora", "trl", "trl_plus"} <= set(data.tags)
    assert data.pipeline_tag == "text-generation"
    assert "LoRA adapter of rank 4 for the local model `model`." in body
    assert "Trained with SimPO (" in body
    assert "the local data `rows`, split train" in body
    assert "8 rows were trained on, 30 others are held out." in body
    after = json.loads((simpo_run / "metrics.json").read_text())["after"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {
        "accuracy": after["eval_rewards/accuracies"],
        "reward_margin": after["eval_rewards/margins"],
        "loss": after["eval_loss"],
    }
    assert f"| `eval_rewards/accuracies` | {after['eval_rewards/accuracies']:.4g} |" in body
    assert "At optimizer step 2, on 30 rows" in body
    assert "fine-tuned version of None" not in body
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert recipe["method"] == "simpo"
    assert recipe["learning_rate"] == 2e-2
    assert recipe["model_name_or_path"] == "path/to/model"
    assert str(simpo_run.parent) not in (simpo_run / "README.md").read_text()
    assert re.search(r"^- trl-plus \S+\n- trl \S+\n- transformers \S+", body, re.MULTILINE)


def test_a_checkpoint_has_the_card_of_its_step(simpo_run):
    data, body = read(simpo_run / "checkpoint-1")
    assert "LoRA adapter of rank 4" in body
    assert data.eval_results is None  # nothing was evaluated but the base
    assert "## Held-out rows" not in body


@pytest.mark.parametrize(("method", "name"), [("SimPO", "SimPO"), ("ORPO", "ORPO"), ("DPO", "IPO"), ("KTO", "KTO")])
def test_from_python(method, name, make_trainer, pair_rows, unpaired_rows, tmp_path):
    rows = unpaired_rows(8) if method == "KTO" else pair_rows(8)
    loss = {"loss_type": ["ipo"]} if name == "IPO" else {}
    trainer = make_trainer(
        method,
        rows,
        trainer={"eval_dataset": Dataset.from_list(rows[:4])},
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=3e-4,
        **loss,
    )
    trainer.train()
    trainer.create_model_card(model_name="mine", dataset_name="org/pairs", tags="extra")
    data, body = read(tmp_path / "out")
    assert data.datasets == ["org/pairs"]
    assert data.library_name == "transformers"
    assert "extra" in data.tags
    assert body.lstrip().startswith("# mine\n")
    assert f"Trained with {name} ([" in body
    assert "Full weights, fine-tuned from the local model `model`." in body
    assert "8 rows were trained on, 4 others are held out." in body
    assert "At optimizer step 1, on 4 rows" in body
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert recipe["learning_rate"] == 3e-4
    assert recipe["method"] == method.lower()
    assert "org/pairs" in body
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert "org/pairs" in (tmp_path / "elsewhere" / "README.md").read_text()


def test_a_local_dataset_is_no_dataset_of_the_hub(make_trainer, pair_rows, tmp_path):
    trainer = make_trainer("SimPO", pair_rows(4))
    trainer.create_model_card(dataset_name=str(tmp_path / "pairs.jsonl"))
    data, body = read(tmp_path / "out")
    assert data.datasets is None
    assert "the local data `pairs.jsonl`" in body
    assert str(tmp_path) not in body


def test_a_card_of_somebody_stays(make_trainer, pair_rows, tmp_path):
    trainer = make_trainer("SimPO", pair_rows(4))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").write_text("# My model\n")
    trainer.save_model(str(tmp_path / "m"))
    assert (tmp_path / "m" / "README.md").read_text() == "# My model\n"
    assert not is_ours(tmp_path / "m" / "README.md")


def test_hub_names_are_linked_and_in_the_metadata():
    card = Card(
        name="m",
        methods=FAMILIES["SimPO"].named("sigmoid"),
        base="org/model",
        adapter="LoRA adapter of rank 8",
        data=[Part("org/a", "split train"), Part("org/b"), Part("org/held", trained=False)],
        recipe={"hub_token": "hf_secret", "a": "```"},
        rows=1,
    )
    text = card_text(card)
    data = ModelCard(text).data
    assert data.base_model == "org/model"
    assert data["base_model_relation"] == "adapter"
    assert data.datasets == ["org/a", "org/b"]
    assert "[org/a](https://huggingface.co/datasets/org/a), split train" in text
    assert "hf_secret" not in text
    assert "````yaml" in text


def test_a_mixture(tmp_path):
    entries = [{"path": "org/a", "name": "clean", "split": "train"}, {"path": str(tmp_path / "b.jsonl")}]
    path = tmp_path / "r.yaml"
    keys = {"method": "dpo", "model_name_or_path": "org/model", "datasets": entries, "output_dir": "out"}
    path.write_text(yaml.safe_dump({**keys, "eval_dataset_name": "org/held", "use_cpu": True}))
    text = card_text(card_of(build(load_recipe(str(path)))))
    assert "[org/a](https://huggingface.co/datasets/org/a), configuration clean, split train" in text
    assert "the local data `b.jsonl`" in text
    assert "[org/held](https://huggingface.co/datasets/org/held), held-out rows" in text
    assert "path: path/to/b.jsonl" in text
    assert ModelCard(text).data.datasets == ["org/a"]


@pytest.mark.parametrize("ours", [True, False])
def test_a_merged_model_carries_a_card(simpo_run, tmp_path, ours):
    from typer.testing import CliRunner

    from trl_plus.cli import app

    run = shutil.copytree(simpo_run, tmp_path / "run")
    text = (run / "README.md").read_text()
    (run / "README.md").write_text(text.replace("## Data", "By hand.\n\n## Data") if ours else "# Another card\n")
    result = CliRunner().invoke(app, ["merge", str(run), str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    data, body = read(tmp_path / "merged")
    assert data.library_name == "transformers"
    assert "lora" not in data.tags
    assert "The local model `model` with its LoRA adapter of rank 4 merged into the weights, which are in " in body
    assert "Trained with SimPO (" in body
    assert 'model="path/to/merged"' in body
    assert ("By hand." in body) == ("30 others are held out" in body) == (data.eval_results is not None) == ours


def test_what_is_no_card_of_ours_is_not_rewritten():
    assert merged_text("# A card\n", None, "LoRA adapter", "float32", "m") is None


def test_what_is_pushed_to_the_hub(make_trainer, pair_rows, tmp_path, monkeypatch):
    class Hub:
        pushed = None

        def create_repo(self, name, **kwargs):
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, folder_path, **kwargs):
            Hub.pushed = ModelCard.load(f"{folder_path}/README.md")

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer = make_trainer("SimPO", pair_rows(4), hub_model_id="mine")
    trainer.push_to_hub(dataset_name=str(tmp_path / "pairs.jsonl"))
    assert Hub.pushed.data.datasets is None
    assert "the local data `pairs.jsonl`" in Hub.pushed.text
    assert 'model="me/mine"' in Hub.pushed.text
    assert str(tmp_path) not in str(Hub.pushed)
