"""What a checkpoint's files say of its tower and its images: what is read, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from autoglm_export.checkpoint.image_processor import image_processor
from autoglm_export.checkpoint.vision import image_tokens
from autoglm_export.checkpoint.vision_config import vision_spec
from autoglm_export.checkpoint.vision_weights import stored_shapes
from autoglm_export.errors import CheckpointError, ExportError, UnsupportedModel
from tokenizers import Tokenizer
from tokenizers.models import BPE

from tests.support.export.tiny_glm4v import CONFIG, HIDDEN_SIZE, PREPROCESSOR, VISION_CONFIG, tiny_tokenizer

SPEC = vision_spec(VISION_CONFIG, HIDDEN_SIZE)
# GLM-4.1V-9B, which Open-AutoGLM's models are made from.
PUBLISHED = {
    "hidden_size": 1536,
    "depth": 24,
    "num_heads": 12,
    "attention_bias": False,
    "intermediate_size": 13696,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "image_size": 336,
    "patch_size": 14,
    "out_hidden_size": 4096,
    "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "model_type": "glm4v_vision",
}


def test_the_published_tower_is_read() -> None:
    spec = vision_spec(PUBLISHED, 4096)
    assert spec == vision_spec({}, 4096), "what a config leaves out is the published model's"
    assert (spec.intermediate_size, spec.merger_size, spec.output_size) == (4096, 13696, 4096)
    assert (spec.head_size, spec.position_table_size, spec.patch_width) == (128, 24, 588)
    assert stored_shapes(spec)["patch_embed.weight"] == (1536, 3, 2, 14, 14)


def test_both_spellings_are_one() -> None:
    new = {
        **{key: value for key, value in VISION_CONFIG.items() if key not in ("depth", "num_heads")},
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": [14, 14],
        "image_size": [56, 56],
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }
    assert vision_spec(new, HIDDEN_SIZE) == SPEC
    assert vision_spec({**VISION_CONFIG, "rope_theta": 500.0}, HIDDEN_SIZE).rope_theta == 500.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"deepstack_visual_indexes": [3]}, "deepstack_visual_indexes"),
    ({"model_type": "qwen3_vl"}, "model_type is 'qwen3_vl'"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"in_channels": 1}, "in_channels is 1"),
    ({"head_dim": 32}, "head_dim is 32"),
    ({"num_heads": 5}, "32 dimensions in 5 heads"),
    ({"num_heads": 16}, "multiple of 4"),
    ({"out_hidden_size": 96}, "out_hidden_size is 96; the text model is 64 wide"),
    ({"depth": 2, "num_hidden_layers": 3}, "depth 2 and num_hidden_layers 3"),
    ({"image_size": 7}, "image_size is below its patch_size"),
    ({"patch_size": [14, 16]}, "patch_size is [14, 16]"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"attention_bias": 1}, "attention_bias is 1"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ({"rope_parameters": {"factor": 2.0}}, "factor"),
    ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta twice"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_tower_that_computes_otherwise_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        vision_spec({**VISION_CONFIG, **changes}, HIDDEN_SIZE)
    assert message in str(caught.value)


def test_both_spellings_of_an_image_processor_are_one() -> None:
    old = {
        **{key: value for key, value in PREPROCESSOR.items() if key != "size"},
        "min_pixels": 3136,
        "max_pixels": 100352,
    }
    assert image_processor(old, SPEC) == image_processor(PREPROCESSOR, SPEC)
    full = {**PREPROCESSOR, "resample": 3, "rescale_factor": 0.00392156862745098, "do_resize": True, "do_pad": None}
    assert image_processor(full, SPEC) == image_processor(PREPROCESSOR, SPEC)


REFUSED_PROCESSORS: list[tuple[dict[str, Any], str]] = [
    ({"do_resize": False}, "do_resize is False"),
    ({"resample": 2}, "resample is 2"),
    ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ({"do_center_crop": True}, "do_center_crop is True"),
    ({"image_processor_type": "Qwen2VLImageProcessor"}, "'Qwen2VLImageProcessor'"),
    ({"patch_size": 16}, "patch_size is 16; the vision_config says 14"),
    ({"merge_size": 3}, "merge_size is 3; the vision_config says 2"),
    ({"size": {"height": 3, "width": 3}}, "height, width"),
    ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "9 ... 8 pixels"),
    ({"max_pixels": 7}, "longest_edge twice"),
    ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
    ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ({"crop_size": 3}, "crop_size"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_PROCESSORS, ids=[message for _, message in REFUSED_PROCESSORS])
def test_a_processor_that_does_otherwise_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        image_processor({**PREPROCESSOR, **changes}, SPEC)
    assert message in str(caught.value)


def test_the_tokens_of_images_are_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer().to_str().encode()
    tokens = image_tokens(CONFIG, tokenizer)
    assert (tokens.begin, tokens.image, tokens.end) == (
        CONFIG["image_start_token_id"],
        CONFIG["image_token_id"],
        CONFIG["image_end_token_id"],
    )
    assert image_tokens({}, tokenizer) == tokens
    with pytest.raises(ExportError, match=r"image_token_id is 3; tokenizer\.json gives <\|image\|> 267"):
        image_tokens({**CONFIG, "image_token_id": 3}, tokenizer)
    with pytest.raises(CheckpointError, match=r"lacks <\|begin_of_image\|>"):
        image_tokens({}, Tokenizer(BPE(vocab={"a": 0}, merges=[])).to_str().encode())
