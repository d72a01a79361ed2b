"""What a checkpoint's files say of its tower and its images: what is read, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from autoglm_export.checkpoint.image_processor import image_processor
from autoglm_export.checkpoint.vision import image_tokens
from autoglm_export.checkpoint.vision_families import GLM4V, QWEN3_VL
from autoglm_export.checkpoint.vision_weights import stored_shapes
from autoglm_export.errors import CheckpointError, ExportError, UnsupportedModel
from tokenizers import Tokenizer
from tokenizers.models import BPE

from tests.support.export import tiny_qwen3_vl as qwen
from tests.support.export.tiny_glm4v import CONFIG, HIDDEN_SIZE, PREPROCESSOR, VISION_CONFIG, tiny_tokenizer

vision_spec = GLM4V.spec
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


# Qwen3-VL-4B-Instruct.
PUBLISHED_QWEN = {
    "deepstack_visual_indexes": [5, 11, 17],
    "depth": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1024,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "model_type": "qwen3_vl",
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2560,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def test_the_published_tower_of_qwen3_vl_is_read() -> None:
    spec = QWEN3_VL.spec(PUBLISHED_QWEN, 2560)
    assert (spec.head_size, spec.position_table_size, spec.patch_width, spec.merger_size) == (64, 48, 768, 4096)
    assert (spec.deepstack, spec.feature_size) == ((5, 11, 17), 4 * 2560)
    assert stored_shapes(spec)["deepstack.2.up.weight"] == (4096, 4096)


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


REFUSED_QWEN: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "qwen2_5_vl"}, "model_type is 'qwen2_5_vl'"),
    ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ({"num_position_embeddings": 17}, "num_position_embeddings is 17; it must be a square number"),
    ({"deepstack_visual_indexes": [2, 1]}, "deepstack_visual_indexes is [2, 1]; it must hold ascending numbers"),
    ({"deepstack_visual_indexes": [1, 1]}, "deepstack_visual_indexes is [1, 1]"),
    ({"deepstack_visual_indexes": [3]}, "deepstack_visual_indexes is [3]"),
    ({"deepstack_visual_indexes": [True]}, "deepstack_visual_indexes is [True]"),
    ({"fullatt_block_indexes": [1]}, "fullatt_block_indexes"),
    ({"window_size": 112}, "window_size"),
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_QWEN, ids=[message for _, message in REFUSED_QWEN])
def test_a_tower_of_qwen3_vl_that_computes_otherwise_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        QWEN3_VL.spec({**qwen.VISION_CONFIG, **changes}, HIDDEN_SIZE)
    assert message in str(caught.value)


def test_both_spellings_of_an_image_processor_are_one() -> None:
    old = {
        **{key: value for key, value in PREPROCESSOR.items() if key != "size"},
        "min_pixels": 3136,
        "max_pixels": 100352,
    }
    assert image_processor(old, SPEC, GLM4V.processor) == image_processor(PREPROCESSOR, SPEC, GLM4V.processor)
    full = {**PREPROCESSOR, "resample": 3, "rescale_factor": 0.00392156862745098, "do_resize": True, "do_pad": None}
    assert image_processor(full, SPEC, GLM4V.processor) == image_processor(PREPROCESSOR, SPEC, GLM4V.processor)


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
        image_processor({**PREPROCESSOR, **changes}, SPEC, GLM4V.processor)
    assert message in str(caught.value)


def test_the_tokens_of_images_are_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer().to_str().encode()
    tokens = image_tokens(CONFIG, tokenizer, GLM4V.tokens)
    assert (tokens.begin, tokens.image, tokens.end) == (
        CONFIG["image_start_token_id"],
        CONFIG["image_token_id"],
        CONFIG["image_end_token_id"],
    )
    assert image_tokens({}, tokenizer, GLM4V.tokens) == tokens
    of_qwen = image_tokens(qwen.CONFIG, tiny_tokenizer(qwen.SPECIAL_TOKENS).to_str().encode(), QWEN3_VL.tokens)
    assert (of_qwen.begin, of_qwen.image, of_qwen.end) == (qwen.BEGIN_IMAGE, qwen.IMAGE, qwen.END_IMAGE)
    with pytest.raises(ExportError, match=r"image_token_id is 3; tokenizer\.json gives <\|image\|> 267"):
        image_tokens({**CONFIG, "image_token_id": 3}, tokenizer, GLM4V.tokens)
    with pytest.raises(CheckpointError, match=r"lacks <\|begin_of_image\|>"):
        image_tokens({}, Tokenizer(BPE(vocab={"a": 0}, merges=[])).to_str().encode(), GLM4V.tokens)
