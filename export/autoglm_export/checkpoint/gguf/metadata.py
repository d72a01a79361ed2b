"""The metadata of a GGUF file become a Hugging Face config and take that road to a `ModelSpec`.

Keys: github.com/ggml-org/ggml/blob/master/docs/gguf.md; what llama.cpp's converters write: its conversion/, commit
00bd27a. What a key's absence means is what llama.cpp takes (`llama_model::load_hparams`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoglm_export.checkpoint.hf_config import Keys, spec_from_config
from autoglm_export.checkpoint.weights import Array
from autoglm_export.errors import TensorError, UnsupportedModel
from autoglm_export.model.spec import Llama3Scaling, ModelSpec, RopeSpec

from .file import GgufFile

# The decoder's family, by the file's architecture. One of "glm4" with three positions a token is GLM-4.1V's.
FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "chatglm": "glm", "glm4": "glm4"}
WITH_SECTIONS = {"glm4": "glm4v"}

# GGUF metadata key below `<architecture>.` -> config.json key
CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
# read elsewhere in this module
OTHER_KEYS = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
}
# Says where something comes from, and changes nothing.
HARMLESS = {"rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"}
_DEFAULT_THETA = 10_000.0


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """Raises UnsupportedModel, naming the key."""
    architecture = file.get("general.architecture")
    if architecture == "clip":
        raise UnsupportedModel("the file is the vision part of a model; name the model's file, or the folder of both")
    if architecture not in FAMILIES:
        raise UnsupportedModel(f"the GGUF architecture is {architecture!r:.40}; supported are {', '.join(FAMILIES)}")
    prefix = f"{architecture}."
    metadata = {key.removeprefix(prefix): file.get(key) for key in file.metadata_names() if key.startswith(prefix)}
    if unknown := sorted(metadata.keys() - CONFIG_KEYS.keys() - OTHER_KEYS - HARMLESS):
        raise UnsupportedModel(f"the GGUF file has metadata that are not understood: {architecture}.{unknown[0]}")
    names = file.names()
    if "token_embd.weight" not in names:
        raise TensorError("the checkpoint lacks token_embd.weight")
    spec = spec_from_config(_as_config(architecture, metadata, file))
    return dataclasses.replace(  # no key says it, and llama.cpp takes what there is
        spec,
        qkv_bias="blk.0.attn_q.bias" in names or "blk.0.attn_qkv.bias" in names,
        output_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
    )


def _as_config(architecture: str, metadata: Mapping[str, Any], file: GgufFile) -> dict[str, Any]:
    config = {"rope_theta": _DEFAULT_THETA}
    config |= {CONFIG_KEYS[key]: value for key, value in metadata.items() if key in CONFIG_KEYS}
    sizes = Keys(config)
    hidden_size, num_heads = sizes.integer("hidden_size"), sizes.integer("num_attention_heads")
    config.setdefault("head_dim", hidden_size // num_heads)
    head_size = sizes.integer("head_dim")
    if (value_size := metadata.get("attention.value_length", head_size)) != head_size:
        raise UnsupportedModel(f"attention.value_length is {value_size}; it must be the key length, {head_size}")
    sections = _sections(architecture, metadata)
    dims = Keys(metadata).integer("rope.dimension_count", head_size)
    return config | {
        "model_type": WITH_SECTIONS[architecture] if sections else FAMILIES[architecture],
        "vocab_size": file.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in file.names(),
        "partial_rotary_factor": dims / head_size,
        "rope_scaling": _scaling(metadata, sizes.number("rope_theta"), dims, file) | sections,
    }


def _sections(architecture: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Of three positions; the fourth, which llama.cpp has room for, has none."""
    sections = metadata.get("rope.dimension_sections", [])
    if not isinstance(sections, list) or len(sections) not in (0, 3, 4) or any(sections[3:]):
        raise UnsupportedModel(f"rope.dimension_sections is {sections!r:.60}; it must be three numbers, and 0")
    if not any(sections):
        return {}
    if architecture not in WITH_SECTIONS:
        raise UnsupportedModel(f"rope.dimension_sections is {sections!r:.60}; {architecture} models have none")
    return {"mrope_section": sections[:3]}


def _scaling(metadata: Mapping[str, Any], theta: float, dims: int, file: GgufFile) -> dict[str, Any]:
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear", 0.0))
    kind = metadata.get("rope.scaling.type", "linear" if factor not in (0, 1) else "none")
    if "rope_freqs.weight" not in file.names():
        return {} if kind == "none" else {"rope_type": kind, "factor": factor}
    if kind != "none":
        raise UnsupportedModel(f"the file scales its rope twice: rope.scaling.type {kind!r:.40} and rope_freqs.weight")
    if file.shape("rope_freqs.weight") != (dims // 2,):
        raise TensorError(
            f"the tensor rope_freqs.weight has shape {list(file.shape('rope_freqs.weight'))}; "
            f"{dims} rotated dimensions ask for {[dims // 2]}"
        )
    return _llama3_scaling(
        file.read("rope_freqs.weight", slice(None)), Keys({"rope_theta": theta}).number("rope_theta")
    )


def _llama3_scaling(divisors: Array, theta: float) -> dict[str, Any]:
    """GGUF keeps only the resulting divisor of each frequency: find Llama 3's rule again, and accept nothing near
    it."""
    factor, dims = float(divisors.max()), 2 * divisors.size
    rule = Llama3Scaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    plain = RopeSpec(theta=theta, dims=dims, interleaved=False).inverse_frequencies()
    scaled = RopeSpec(theta=theta, dims=dims, interleaved=False, scaling=rule).inverse_frequencies()
    if not np.allclose(divisors, plain / scaled, rtol=1e-3):
        raise UnsupportedModel("the tensor rope_freqs.weight does not follow Llama 3's rope scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_max_position,
    }
