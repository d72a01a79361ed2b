"""Configs of every family -> spec: what is read, what is refused, and by which name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.families import FAMILIES
from autoglm_export.checkpoint.hf_config import spec_from_config
from autoglm_export.checkpoint.weights import source_names, weight_shapes
from autoglm_export.errors import UnsupportedModel
from autoglm_export.model.spec import Llama3Scaling

from tests.support.export.tiny_models import FAMILIES as FAMILY_NAMES

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    base = {**BASE, "model_type": family, "architectures": list(FAMILIES[family].architectures)}
    if family == "qwen3_vl":
        base["rope_scaling"] = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    if family == "glm4v":
        base["rope_scaling"] = {"type": "default", "mrope_section": [1, 1, 2]}
        base["partial_rotary_factor"] = 0.5
    return {**base, **changes}


@pytest.mark.parametrize("family", [*FAMILY_NAMES, "qwen3_vl"])
def test_every_canonical_weight_has_one_source(family: str) -> None:
    spec = spec_from_config(config(family))
    sources = source_names(spec, FAMILIES[family])
    assert sources.keys() == weight_shapes(spec).keys()
    places = {(source.name, source.part) for source in sources.values()}
    assert len(places) == len(sources), "two weights come from one place"


def test_families_differ_where_they_should() -> None:
    glm4 = spec_from_config(config("glm4"))
    assert (glm4.sandwich_norm, glm4.qkv_bias, glm4.output_bias) == (True, True, False)
    assert (glm4.rope.dims, glm4.rope.interleaved) == (8, True)
    qwen3 = spec_from_config(config("qwen3"))
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.rope.interleaved) == (True, False, False)
    assert spec_from_config(config("qwen2")).qkv_bias
    llama = spec_from_config(config("llama", attention_bias=True, mlp_bias=True))
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)


def test_both_spellings_of_the_rope_are_one() -> None:
    old = config("llama", rope_theta=5e5, rope_scaling=LLAMA3)
    new = config("llama", rope_parameters={**LLAMA3, "rope_theta": 5e5})
    assert asdict(spec_from_config(old)) == asdict(spec_from_config(new))
    assert spec_from_config(old).rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_linear_scaling_divides_frequencies() -> None:
    plain = spec_from_config(config("llama")).rope
    scaled = spec_from_config(config("llama", rope_scaling={"type": "linear", "factor": 4.0})).rope
    np.testing.assert_allclose(scaled.inverse_frequencies() * 4, plain.inverse_frequencies())


def test_llama3_scaling_equals_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    reference_config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters={**LLAMA3, "rope_theta": 5e5}
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](reference_config, "cpu")
    spec = spec_from_config(config("llama", head_dim=128, rope_theta=5e5, rope_scaling=LLAMA3))
    np.testing.assert_allclose(spec.rope.inverse_frequencies(), expected.numpy(), rtol=1e-5)


def test_glm4v_reads_nested_and_flat_configs() -> None:
    flat = config("glm4v", vision_config={"depth": 1}, image_token_id=7)
    inner = {key: value for key, value in flat.items() if key not in ("architectures", "model_type", "vision_config")}
    nested = {"model_type": "glm4v", "vision_config": {}, "text_config": {**inner, "model_type": "glm4v_text"}}
    assert asdict(spec_from_config(flat)) == asdict(spec_from_config(nested))


def test_the_published_decoder_of_qwen3_vl_is_read() -> None:
    """Qwen3-VL-4B-Instruct."""
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "vocab_size": 151936,
    }
    whole = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "vision_config": {},
    }
    spec = spec_from_config(whole)
    assert (spec.qk_norm, spec.qkv_bias, spec.sandwich_norm, spec.tied_embeddings) == (True, False, False, True)
    assert (spec.rope.dims, spec.rope.theta, spec.rope.mixed_sections) == (128, 5e6, True)
    assert spec.rope.axes[:7] == (0, 1, 2, 0, 1, 2, 0) and set(spec.rope.axes[60:]) == {0}
    assert [spec.rope.axes.count(axis) for axis in range(3)] == [24, 20, 20]


def test_only_decoders_that_take_images_have_sections() -> None:
    spec = spec_from_config(config("glm4v"))
    assert spec.takes_images and spec.rope.sections == (1, 1, 2)
    assert spec.as_json()["rope"]["sections"] == (1, 1, 2)
    for plain in (spec.without_images(), spec_from_config(config("glm4"))):
        assert not plain.takes_images
        assert "sections" not in plain.as_json()["rope"], "a manifest without images is what it was"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "mamba"}, "model_type is 'mamba'"),
    ("llama", {"model_type": None}, "model_type is None"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama", {"attention_multiplier": 0.5}, "attention_multiplier"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor is None"),
    ("llama", {"rope_scaling": {"type": "default", "beta_fast": 32}}, "beta_fast"),
    ("llama", {"rope_scaling": {"type": "default", "factor": 8.0}}, "factor"),
    ("llama", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta twice"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    ("llama", {"hidden_size": None}, "hidden_size is None"),
    ("llama", {"vocab_size": "300"}, "vocab_size is '300'"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ("llama", {"attention_bias": "yes"}, "attention_bias is 'yes'"),
    ("llama", {"sliding_window": 128}, "sliding_window"),
    ("qwen2", {"attention_bias": False}, "attention_bias is false"),
    ("qwen2", {"use_mrope": True}, "use_mrope is True"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "sliding_window of 64"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
    ("glm", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    ("glm", {"partial_rotary_factor": 0.2}, "3 of 16 dimensions"),
    ("glm4v", {"head_dim": 32}, "head_dim is 32"),
    ("glm4v", {"rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]}}, "mrope_section is [8, 12, 12]"),
    ("glm4v", {"rope_scaling": {"type": "default", "mrope_section": [-1, 3, 2]}}, "mrope_section is [-1, 3, 2]"),
    ("glm4v", {"rope_scaling": {"type": "default", "mrope_section": [2, 2]}}, "mrope_section is [2, 2]"),
    ("glm4v", {"text_config": {"model_type": "qwen2"}}, "text_config.model_type is 'qwen2'"),
    ("glm4v", {"rope_scaling": {"mrope_section": [1, 1, 2], "mrope_interleaved": True}}, "mrope_interleaved is True"),
    ("qwen3_vl", {"rope_scaling": {"mrope_section": [4, 2, 2], "mrope_interleaved": False}}, "always True"),
    ("qwen3_vl", {"rope_scaling": {"mrope_section": [1, 4, 3]}}, "take turns in 8 pairs, [3, 3, 2] fit"),
    ("qwen3_vl", {"text_config": {"model_type": "qwen3"}}, "text_config.model_type is 'qwen3'"),
    ("qwen3", {"model_type": "qwen2_5_vl"}, "model_type is 'qwen2_5_vl'"),
    ("qwen3", {"model_type": "qwen3_vl_moe"}, "model_type is 'qwen3_vl_moe'"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_changes_the_mathematics_is_refused_by_name(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        spec_from_config(config(family, **changes))
    assert message in str(caught.value)


HARMLESS: list[dict[str, Any]] = [
    {"torch_dtype": "bfloat16", "use_cache": False, "transformers_version": "4.40.0", "initializer_range": 0.1},
    {"attention_dropout": 0.1, "pretraining_tp": 1, "rope_interleaved": False, "is_llama_config": True},
    {"rope_scaling": None, "head_dim": None, "tie_word_embeddings": False},
]


@pytest.mark.parametrize("changes", HARMLESS)
def test_harmless_keys_change_nothing(changes: dict[str, Any]) -> None:
    assert spec_from_config(config("llama", **changes)) == spec_from_config(config("llama"))


def test_unused_sliding_window_is_full_attention() -> None:
    changes = {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}
    assert spec_from_config(config("qwen2", **changes)) == spec_from_config(config("qwen2"))
