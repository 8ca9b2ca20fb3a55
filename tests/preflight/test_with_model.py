"""`--with-model`: what the base model makes of training pairs, in nats per token."""

import json

import numpy as np
import pytest

from trl_plus.preflight.opening import open_argument
from trl_plus.preflight.with_model import ROWS, _margins


@pytest.mark.parametrize("method", ["simpo", "kto"])
def test_margins_are_mean_log_probabilities(method, tmp_path, pair_rows, tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = pair_rows(ROWS + 5)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = _margins(open_argument(str(path), method, tiny_model_dir, ["use_cpu=true"]))
    assert len(found.rows) == ROWS
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)

    def per_token(row, side):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template([*row["prompt"], *row[side]], return_dict=False)
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        own = torch.tensor(ids[1:])
        return float(logps.gather(1, own[:, None])[len(prompt) - 1 :].mean())

    want = [per_token(row, "chosen") - per_token(row, "rejected") for row in (rows[i] for i in found.rows[:4])]
    np.testing.assert_allclose(found.values[:4], want, atol=1e-5)
