"""A tiny random Qwen3-VL checkpoint: tower with deepstack, image processor, image tokens and a chat template of its
shape.

An image of 64 x 96 pixels is 4 x 6 patches, 2 x 3 tokens; 64 tokens are the most that one can be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.export.tiny_glm4v import HIDDEN_SIZE, VOCAB_SIZE, made_random, tiny_tokenizer, write_model

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
IDS = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}
BEGIN_IMAGE, END_IMAGE, IMAGE = (IDS[token] for token in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"))
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": IDS["<|im_end|>"],
    "bos_token_id": IDS["<|endoftext|>"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
VISION_CONFIG: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": HIDDEN_SIZE,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 2],
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
CONFIG: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": BEGIN_IMAGE,
    "vision_end_token_id": END_IMAGE,
}
PREPROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 64 * 32 * 32},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
}
CHAT_TEMPLATE = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
{{- '<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\nTo call one: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role != 'system' or not tools %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def tiny_qwen3_vl(
    *,
    seed: int = 0,
    vision_seed: int = 0,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Any:
    """transformers' model, every parameter random. `vision`, `text`: changes of its configs."""
    import transformers

    config = transformers.Qwen3VLConfig(
        text_config=TEXT_CONFIG | (text or {}), vision_config=VISION_CONFIG | (vision or {}), **CONFIG
    )
    return made_random(transformers.Qwen3VLForConditionalGeneration(config), seed, vision_seed)


def write_tiny_qwen3_vl(folder: Path, *, processor: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A whole checkpoint folder; the model is what was written. `processor`: changes of its image processor."""
    tokenizer, preprocessor = tiny_tokenizer(SPECIAL_TOKENS), PREPROCESSOR | (processor or {})
    return write_model(folder, tiny_qwen3_vl(**changes), tokenizer, CHAT_TEMPLATE, preprocessor)
