"""A tiny LLaVA sees what transformers shows it, in the same batch as text."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.generation.local.model import Limits, LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Image, Message
from tests.generation.local.conftest import tokens_of
from tests.generation.local.test_rows import finished, reply_of
from tests.tiny import tiny_llava_processor

TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
)


def picture(color: str) -> Image:
    from PIL import Image as pillow

    data = io.BytesIO()
    pillow.new("RGB", (40, 30), color).save(data, "PNG")
    return Image(data.getvalue())


@pytest.fixture(scope="module")
def llava(tiny_llama_folder: Path) -> Any:
    """(reference, our engine, processor) with the same random weights."""
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = AutoConfig.from_pretrained(tiny_llama_folder)
    text.vocab_size = len(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    token = tokenizer.convert_tokens_to_ids("<image>")
    config: Any = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    config.image_token_id = token
    processor = tiny_llava_processor(tokenizer)
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(LlavaForConditionalGeneration(copy.deepcopy(config)).double().eval())
        models[-1].generation_config.eos_token_id = tokenizer.eos_token_id
    ours = LocalModel(
        "llava",
        models[1],
        tokenizer,
        Limits(cache_bytes=1 << 26, prefill_chunk=16),
        chat_template=TEMPLATE,
        processor=processor,
    )
    yield models[0], ours, processor
    ours.close()


def request(text: str, *images: Image) -> GenerationRequest:
    return GenerationRequest((Message("user", text, images),), SamplingParams(do_sample=False, max_tokens=20), logprobs=0)


def expected(llava: Any, text: str, *images: Image) -> list[int]:
    from PIL import Image as pillow

    reference, _, processor = llava
    opened = [pillow.open(io.BytesIO(image.data)) for image in images]
    rendered = "<image>" * len(images) + text + "<|im_end|>"
    read = processor(text=[rendered], images=opened or None, return_tensors="pt", add_special_tokens=False)
    made = reference.generate(**read, max_new_tokens=20, do_sample=False)
    return reply_of(made[0, read["input_ids"].shape[1] :].tolist())


def test_pictures_and_text_share_a_batch(llava: Any) -> None:
    _, ours, _ = llava
    assert ours.capabilities.images and ours.capabilities.max_parallel > 1
    red, blue = picture("red"), picture("blue")
    asked = [("what is this?", red), ("what is this?", blue), ("only text",), ("and both?", red, blue)]
    streams = [ours.stream(request(*each)) for each in asked]
    replies = [tokens_of(stream) for stream in streams]
    assert replies == [expected(llava, *each) for each in asked]


def test_the_cache_tells_pictures_apart(llava: Any) -> None:
    _, ours, _ = llava
    text = "the same long question about a picture, " * 3
    for color in ("green", "yellow", "green"):
        assert tokens_of(ours.stream(request(text, picture(color)))) == expected(llava, text, picture(color))
    again = finished(list(ours.stream(request(text, picture("green")))))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


def test_what_is_no_picture_is_refused(llava: Any, make_local: Any) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        llava[1].stream(request("look", Image(b"not a picture")))
    with pytest.raises(UserError, match="cannot see"):
        make_local().stream(request("look", picture("red")))
