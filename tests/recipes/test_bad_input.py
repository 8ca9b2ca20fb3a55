"""Every kind of bad recipe is answered with one sentence that names the cure."""

import pytest

from trl_plus.errors import RecipeError
from trl_plus.methods import METHODS
from trl_plus.recipes.keys import all_keys, owners
from trl_plus.recipes.recipe import load_recipe
from trl_plus.recipes.unknown_keys import REFUSED, RENAMED, REPLACED, explain


def message(path, *overrides):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("learning_rat", 1e-6, "did you mean `learning_rate`"),
        ("zzz_qqq", 1, "`trl-plus schema` lists every key"),
        ("no_bf16", True, "write `bf16: false`"),
        ("torch_dtype", "bfloat16", "write `dtype: bfloat16`"),
        ("evaluation_strategy", "steps", "write `eval_strategy: steps`"),
        ("max_prompt_length", 512, "`max_length`"),
        ("warmup_ratio", 0.1, "`warmup_steps: 0.1`"),
        ("simpo_gamma", 0.5, "write `gamma: 0.5`"),
        ("rpo_alpha", 1.0, "[sigmoid, sft]"),
        ("dataset_mixer", {"a": 1.0}, "`dataset_name`"),
        ("use_flash_attention_2", True, "attn_implementation"),
        ("hub_token", "secret", "hf auth login"),
        ("padding_free", True, "TRL switches it off"),
        ("desirable_weight", 1.0, "belongs to method kto"),
        ("cpo_alpha", 1.0, "belongs to method cpo"),
        ("ld_alpha", 0.5, "its loss never reads it"),
        ("precompute_ref_log_probs", True, "it has no reference model"),
        ("beta", "abc", "`beta` must be a number, got 'abc'"),
        ("beta", True, "`beta` must be a number"),
        ("beta", float("nan"), "`beta` must be a number"),
        ("max_length", 12.5, "must be a whole number"),
        ("bf16", "maybe", "must be true or false"),
        ("run_name", 2024, "must be text"),
        ("loss_type", "ipo", "a list of sigmoid, hinge"),
        ("eval_strategy", "sometimes", "one of no, steps, epoch"),
        ("lora_target_modules", [1], "a list of text"),
        ("lora_r", 8, "without `use_peft: true`"),
        ("bnb_4bit_quant_type", "nf4", "without `load_in_4bit: true`"),
        ("load_in_4bit", True, "needs `use_peft: true`"),
        ("per_device_train_batch_size", 0, "must be at least 1"),
        ("gradient_accumulation_steps", 0, "must be at least 1"),
        ("num_train_epochs", 0, "must be above 0"),
        ("save_steps", 0, "must be above 0"),
        ("max_steps", 0, "`max_steps` must be at least 1, got 0: remove it, or write -1"),
        ("max_steps", -2, "must be at least 1"),
        ("learning_rate", -1.0, "must be at least 0"),
        ("tokens_per_device", 0, "must be at least 1"),
        ("eval_fraction", 1.5, "must be below 1"),
        ("eval_fraction", -0.1, "must be at least 0"),
        ("max_eval_rows", -1, "must be at least 0"),
        ("sft_weight", -1, "must be at least 0"),
        ("test_split_size", 0.1, "without a list `datasets`"),
        ("eval_steps", 10, "without `eval_strategy: steps`"),
        ("early_stopping_patience", 2, "without `eval_strategy: steps`"),
        ("early_stopping_patience", 0, "must be at least 1"),
        ("early_stopping_threshold", 0.1, "without `early_stopping_patience`: add that"),
        ("load_best_model_at_end", True, "add `eval_strategy: steps` and `eval_steps`"),
    ],
)
def test_one_key(write, key, value, words):
    assert words in message(write(**{key: value}))


@pytest.mark.parametrize(
    "keys, words",
    [
        (
            {"early_stopping_patience": 2},
            "`load_best_model_at_end: true` and `metric_for_best_model: rewards/accuracies`",
        ),
        ({"early_stopping_patience": 2, "method": "kto"}, "`metric_for_best_model: rewards/margins`"),
        (
            {"load_best_model_at_end": True, "save_strategy": "no"},
            "write `save_strategy: steps` or `save_strategy: best`",
        ),
        ({"load_best_model_at_end": True, "save_steps": 30}, "so write a multiple of `eval_steps`, which is 20"),
        ({"load_best_model_at_end": True, "save_steps": 30, "eval_steps": None, "logging_steps": 7}, "which is 7"),
    ],
)
def test_keys_of_the_best_checkpoint(write, keys, words):
    assert words in message(write(**{"eval_strategy": "steps", "eval_steps": 20, **keys}))


def test_evaluations_without_a_checkpoint_are_said(write):
    keys = {"eval_strategy": "steps", "eval_steps": 20, "load_best_model_at_end": True}
    (note,) = load_recipe(write(**keys, save_steps=40)).notes
    assert "an older one is loaded" in note
    assert not load_recipe(write(**keys, save_steps=20)).notes
    assert not load_recipe(write(**{**keys, "eval_steps": None}, save_strategy="best")).notes


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"gamma": 0.5, "gamma_beta_ratio": 0.3}, "exclude each other"),
        ({"gamma": 0, "gamma_beta_ratio": 0}, "exclude each other"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"method": "simop"}, "did you mean `simpo`"),
        ({"method": ["simpo"]}, "unknown method"),
        ({"method": "qqqq"}, "The methods are simpo"),
        ({"method": "ipo", "loss_type": "hinge"}, "write `method: dpo`"),
        ({"method": "apo_zero_unpaired", "loss_type": "kto"}, "write `method: kto`"),
        ({"method": "dpo", "gamma_beta_ratio": 0.5}, "belongs to method simpo"),
        ({"method": "cpo", "simpo_gamma": 0.5}, "a key of method simpo"),
        ({"method": None}, "`method` is missing"),
        ({"model_name_or_path": None}, "`model_name_or_path` is missing"),
        ({"dataset_name": None}, "`dataset_name` is missing"),
        ({"output_dir": None}, "`output_dir` is missing"),
        ({"datasets": [{"path": "a"}]}, "exclude each other"),
        ({"dataset_name": None, "datasets": [{"id": "a"}]}, "unknown key `id`"),
        ({"dataset_name": None, "datasets": [{"path": "a", "fraction": "x"}]}, "`fraction` must be a number"),
        ({"dataset_name": None, "datasets": "a"}, "a list of mappings"),
        ({"dataset_name": None, "datasets": [{"path": "a", "converter": "x"}]}, "`converter` must be one of openai"),
        ({"dataset_name": None, "datasets": [{"path": "a"}], "converter": "hh"}, "each entry of `datasets`"),
        ({"converter": "zzz"}, "`converter` must be one of openai, sharegpt"),
        ({"converter": "sharegtp"}, "did you mean `sharegpt`? It must be one of openai"),
        ({"dataset_name": None, "datasets": [{"path": "a", "converter": "Alpca"}]}, "did you mean `alpaca`?"),
        ({"dataset_name": None, "datasets": [{"path": "a", "converterr": "hh"}]}, "did you mean `converter`? The keys"),
        (
            {"dataset_name": None, "datasets": [{"path": "a", "fractoin": 1}]},
            "datasets[0]: unknown key `fractoin`: did",
        ),
        ({"converter": "pairs_to_unpaired"}, "write `method: kto`"),
        ({"dataset_name": None, "datasets": [{"path": "a"}], "dataset_train_split": "t"}, "next to `datasets`"),
        ({"dataset_name": "./none.jsonl"}, "does not exist"),
        ({"dataset_name": "none.parquet"}, "does not exist"),
        ({"eval_dataset_name": "../nowhere"}, "does not exist"),
        ({"model_name_or_path": "./nowhere"}, "does not exist"),
        ({"chat_template_path": "none.jinja"}, "does not exist"),
        ({"dataset_name": "bundled:../../etc"}, "not part of the package"),
        ({"dataset_name": "bundled:quickstart/../recipes"}, "not part of the package"),
        ({"model_name_or_path": "bundled:recipes/keys.json"}, "not part of the package"),
    ],
)
def test_combinations(write, keys, words):
    assert words in message(write(**keys))


@pytest.mark.parametrize(
    "text, words",
    [
        ("method: [simpo", "not valid YAML, line 1, column 15"),
        ("method: simpo\nbeta: 1\n\nbeta: 2", "line 4: `beta` is already given on line 2"),
        ("method: simpo\ndeepspeed: {a: 1, a: 2}", "`a` is already given"),
        ("", "is empty: write at least `method: simpo`."),
        ("- method: simpo", "must be a YAML mapping of `key: value` lines."),
        ("3: 4", "is not text"),
        ("method: simpo\n\tbeta: 1", "not valid YAML"),
        ("method: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_not_yaml(write, text, words):
    said = message(write(text))
    assert words in said
    assert "not of its type" not in said


def test_not_a_file(tmp_path):
    assert "There is no file" in message(str(tmp_path / "none.yaml"))
    assert "is a folder" in message(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "cannot be read" in message(str(tmp_path / "binary.yaml"))
    assert "a bundled recipe `simpo_lora`" in message("simpo_lor")


def test_line_and_all_problems_at_once(write):
    text = message(write(learning_rat=1, torch_dtype="auto"), "max-prompt-length=3")
    assert "3 problems" in text
    assert "r.yaml, line 5: unknown key `learning_rat`" in text
    assert "command line: `max_prompt_length`" in text


@pytest.mark.parametrize("words", [["beta"], ["--max_length"], ["2.5"], ["--", "x"], ["-b", "1"]])
def test_bad_overrides(write, words):
    assert "write" in message(write(), *words)


def test_old_keys_are_not_keys_of_today():
    known = set(all_keys()) | {"method"}
    assert not known & {*RENAMED, *REPLACED, *REFUSED}
    for new in RENAMED.values():
        assert new.split(":")[0] in known


@pytest.mark.parametrize("method", METHODS)
def test_every_old_key_is_answered(method):
    for key in (*RENAMED, *REPLACED, *REFUSED):
        assert f"`{key}`" in explain(key, 1, METHODS[method])


# the values that the keys of today are tried with; every other key takes a text
SAMPLES = {
    "eval_fraction": 0.2, "max_length": 512, "num_train_epochs": 2, "learning_rate": 1e-6, "beta": 0.2, "gamma": 0.4,
    "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "dataset_num_proc": 1, "lora_r": 8,
    "desirable_weight": 1.5, "undesirable_weight": 1.5, "gradient_checkpointing": True, "use_cpu": True,
    "lora_target_modules": ["q_proj"], "lora_modules_to_save": ["lm_head"], "lr_scheduler_type": "cosine",
    "optim": "adamw_torch", "eval_strategy": "no", "loss_type": ["sigmoid"], "dtype": "bfloat16",
    "attn_implementation": "sdpa",
}  # fmt: skip


@pytest.mark.parametrize("key, new", RENAMED.items())
def test_every_old_name_names_the_key_and_following_it_works(write, key, new):
    import yaml

    method = owners(new)[0] if owners(new) else "dpo"
    value = SAMPLES.get(new, "name")
    more = {"use_peft": True} if new.startswith("lora") else {}
    more |= {"push_to_hub": True} if new.startswith("hub") else {}
    text = message(write(method=method, **more, **{key: value}))
    line = text.split(f"`{key}` is now `{new}`: write `")[1].split("`")[0]
    recipe = load_recipe(write(**{"method": method, **more, **yaml.safe_load(line)}))
    assert recipe[new] == value


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("lora_target", "all", "lora_target_modules: all-linear"),
        ("lora_target", "q_proj,v_proj", "lora_target_modules: [q_proj, v_proj]"),
        ("attn_impl", "flash_attn", "attn_implementation: flash_attention_2"),
        ("pref_loss", "simpo", "method: simpo"),
        ("val_size", 100, "eval_fraction: 0.1"),
        ("dataset", "pairs_one,pairs_two", "datasets: [{path: pairs_one}, {path: pairs_two}]"),
    ],
)
def test_values_that_have_another_name_today(key, value, line):
    assert f"write `{line}`" in explain(key, value, METHODS["dpo"])
