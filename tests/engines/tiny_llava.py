"""A LLaVA of some 300 kB with random weights: the real classes, and nothing to download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
WORDS = ["USER", "ASSISTANT", ":", ".", "?", "What", "is", "this", "the", "total", "picture"]
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | upper }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)

_SIDE, _PATCH, _WIDTH = 28, 14, 64  # vLLM: 32 for each of two heads


def save_tiny_llava(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Make the model from a configuration, and save it as a folder like a model of the hub."""
    vocabulary = SPECIAL + WORDS + [f"word{number}" for number in range(100)]
    bare = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=SPECIAL[0])
    )
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        unk_token="<unk>",  # noqa: S106 - no secret
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106 - and no padding token, as with many a Llama
        additional_special_tokens=["<image>"],
    )
    size = {"height": _SIDE, "width": _SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    vision = CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=_PATCH,
        projection_dim=_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,  # or all answers are alike
    )
    torch.manual_seed(5)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=SPECIAL.index("<image>")
        )
    )
    with torch.no_grad():  # it says words: a special token is never the likeliest
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
