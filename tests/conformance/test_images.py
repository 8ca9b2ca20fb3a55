"""Rows with images: a tiny LLaVA gives the same numbers through TRL's DPOTrainer and ours."""

import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Sequence, Value

from tests.conftest import build_tokenizer

SIDE, PATCH = 28, 14
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def processor():
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def build(processor, seed):
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token)
    return LlavaForConditionalGeneration(config).double()


def with_images(rows):
    """One image of one colour per row, in front of the prompt."""
    images = [PIL.Image.new("RGB", (40, 30), (30 * i, 255 - 30 * i, 90)) for i in range(len(rows))]
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": Sequence(Image()), "prompt": message, "chosen": message, "rejected": message})
    return Dataset.from_list([row | {"images": [image]} for row, image in zip(rows, images, strict=True)], features)


@pytest.mark.parametrize("config", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}], ids=str)
def test_dpo(config, both, pair_rows, processor):
    models = {"model": lambda: build(processor, 0), "ref_model": lambda: build(processor, 1)}
    trainer = models | {"processing_class": lambda: processor}
    ours, _ = both(
        "DPO", lambda: with_images(pair_rows(8)), reference=False, trainer=trainer, max_length=None, **config
    )
    assert any("vision_tower" in name and change.abs().sum() > 0 for name, change in ours.update.items())
