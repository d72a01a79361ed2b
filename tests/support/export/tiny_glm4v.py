"""A tiny random glm4v checkpoint that sees: tower, image processor, image tokens and a chat template of GLM-4V's shape.

An image of 56 x 84 pixels is 4 x 6 patches, 2 x 3 tokens; 64 tokens are the most that one can be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCAB_SIZE = 288
HIDDEN_SIZE = 64
SPECIAL_TOKENS = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
IDS = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
BEGIN_IMAGE, END_IMAGE, IMAGE = (IDS[token] for token in ("<|begin_of_image|>", "<|end_of_image|>", "<|image|>"))
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "eos_token_id": [IDS["<|endoftext|>"], IDS["<|user|>"]],
    "bos_token_id": None,
    "pad_token_id": IDS["<|endoftext|>"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 0.5,
    },
}
VISION_CONFIG: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": HIDDEN_SIZE,
    "image_size": 56,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "rms_norm_eps": 1e-5,
}
CONFIG: dict[str, Any] = {
    "image_token_id": IMAGE,
    "image_start_token_id": BEGIN_IMAGE,
    "image_end_token_id": END_IMAGE,
    "video_token_id": IDS["<|video|>"],
    "video_start_token_id": IDS["<|begin_of_video|>"],
    "video_end_token_id": IDS["<|end_of_video|>"],
}
PREPROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 2 * 28 * 28 * 2, "longest_edge": 2 * 28 * 28 * 64},
    "do_rescale": True,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Glm4vImageProcessor",
    "processor_class": "Glm4vProcessor",
}
CHAT_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
{%- if message.role == 'system' %}
<|system|>
{{ message.content }}
{%- elif message.role == 'user' %}
<|user|>{{ '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- elif message.role == 'assistant' %}
<|assistant|>
{{ message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|assistant|>
{% endif %}"""


def gguf_tokenizer() -> dict[str, Any]:
    """The same vocabulary as the metadata of a GGUF file."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL_TOKENS, "ab"]
    unused = [f"[PAD{index}]" for index in range(len(tokens), VOCAB_SIZE)]
    types = [1] * 256 + [3] * len(SPECIAL_TOKENS) + [1] + [5] * len(unused)
    fields = {"model": "gpt2", "pre": "glm4", "tokens": [*tokens, *unused], "token_type": types, "merges": ["a b"]}
    fields |= {"eos_token_id": IDS["<|endoftext|>"], "eot_token_id": IDS["<|user|>"]}
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items()}


def tiny_glm4v(
    *,
    seed: int = 0,
    vision_seed: int = 0,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Any:
    """transformers' model, every parameter random. `vision`, `text`: changes of its configs."""
    import transformers

    config = transformers.Glm4vConfig(
        text_config=TEXT_CONFIG | (text or {}), vision_config=VISION_CONFIG | (vision or {}), **CONFIG
    )
    return made_random(transformers.Glm4vForConditionalGeneration(config), seed, vision_seed)


def made_random(model: Any, seed: int, vision_seed: int) -> Any:
    import torch

    text_noise, tower_noise = (torch.Generator().manual_seed(number) for number in (seed, vision_seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=tower_noise if "visual" in name else text_noise)
            is_norm = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * _spread(parameter.shape))
    return model.eval()


def _spread(shape: Sequence[int]) -> float:
    """So that sums over many inputs stay near 1: what an image adds is then seen in every later value."""
    return 0.15 if len(shape) == 1 else 1.5 / float(np.sqrt(np.prod(shape[1:])))


def write_tiny_glm4v(folder: Path, *, processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A whole checkpoint folder; the model is what was written. `processor`: changes of its image processor."""
    return write_model(folder, tiny_glm4v(**changes), tiny_tokenizer(), CHAT_TEMPLATE, PREPROCESSOR | (processor or {}))


def write_model(folder: Path, model: Any, tokenizer: Tokenizer, template: str, preprocessor: dict[str, Any]) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def tiny_tokenizer(special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """One token a byte, and the special ones behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    return tokenizer


def image_file(height: int, width: int, *, seed: int = 0, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A file of random colours in blocks of a few pixels, so that resizing leaves something of them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    pixels = blocks.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    stream = BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def reference_pixels(images: Sequence[bytes], preprocessor: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """`pixel_values` and `image_grid_thw` of transformers' processor, as its pipelines load images. `preprocessor`:
    changes of the tiny model's."""
    from transformers.image_utils import load_image
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    merged = PREPROCESSOR | (preprocessor or {})
    is_glm = merged["image_processor_type"].startswith("Glm4v")
    known = {key: value for key, value in merged.items() if not key.endswith(("type", "class"))}
    loaded = [load_image(Image.open(BytesIO(image))) for image in images]
    processor = (Glm4vImageProcessorPil if is_glm else Qwen2VLImageProcessorPil)(**known)
    found = processor(images=loaded, return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"]


def expanded(ids: Sequence[int], grids: Sequence[tuple[int, int]], image: int = IMAGE) -> list[int]:
    """`ids` with each image token repeated for every token of its image; `grids`: rows and columns of tokens."""
    counts = iter(rows * columns for rows, columns in grids)
    return [token for one in ids for token in [one] * (next(counts) if one == image else 1)]


def reference_greedy(model: Any, ids: Sequence[int], images: Sequence[bytes], num_tokens: int) -> list[int]:
    """transformers' greedy tokens after the expanded prompt `ids`; ending tokens end nothing."""
    return [int(row.argmax()) for row in reference_logits(model, ids, images, num_tokens)]


def reference_logits(
    model: Any,
    ids: Sequence[int],
    images: Sequence[bytes],
    num_tokens: int,
    preprocessor: dict[str, Any] | None = None,
) -> npt.NDArray[np.float32]:
    """[num_tokens, vocab_size]: the logits that each greedy token is taken from. Every step is a whole forward pass.
    `preprocessor`: as `reference_pixels`."""
    import torch

    taken, rows = list(ids), []
    pixels = reference_pixels(images, preprocessor) if images else (None, None)
    while len(rows) < num_tokens:
        inputs = torch.tensor([taken])
        is_image = (inputs == model.config.image_token_id).int()
        with torch.inference_mode():
            output = model(
                input_ids=inputs,
                pixel_values=pixels[0],
                image_grid_thw=pixels[1],
                mm_token_type_ids=is_image,
                use_cache=False,
            )
        rows.append(output.logits[0, -1].float().numpy())
        taken.append(int(rows[-1].argmax()))
    return np.array(rows)
