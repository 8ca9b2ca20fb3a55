"""A tiny Llama on disk with the quickstart's tokenizer, and a recipe on the quickstart's data."""

import shutil
from pathlib import Path

import pytest

import trl_plus

QUICKSTART = Path(trl_plus.__file__).parent / "quickstart"
# 2 layers, hidden 16, 4 heads of 4 with 2 for keys and values, MLP 48, vocabulary 1280
SIZE = {
    "vocab_size": 1280, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    LlamaConfig(architectures=["LlamaForCausalLM"], eos_token_id=2, pad_token_id=0, **SIZE).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(QUICKSTART / "model" / file, folder)
    return folder


@pytest.fixture
def recipe(model_folder, tmp_path):
    """recipe(*overrides): a recipe of full fine-tuning."""
    from trl_plus.recipes.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"method: simpo\nmodel_name_or_path: {model_folder}\ndataset_name: bundled:quickstart/pairs\n"
        f"output_dir: {tmp_path}/out\nbf16: false\ngradient_checkpointing: false\nmax_length: 64\n"
        "per_device_train_batch_size: 2\ngradient_accumulation_steps: 4\n"
    )
    return lambda *overrides: load_recipe(str(path), overrides)
