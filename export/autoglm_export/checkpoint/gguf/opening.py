"""Opens a GGUF file (llama.cpp's format) as a `Checkpoint`: its metadata become a Hugging Face config and take that
road.

Format and metadata keys: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors: `gguf.constants`.
llama.cpp rotates neighbouring pairs in llama models, so its converter reorders the rows of each query and key head
from (all first halves, all second halves) to pairs; that is undone here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from autoglm_export.checkpoint.base import Checkpoint, checked_tokenizer
from autoglm_export.checkpoint.families import FAMILIES
from autoglm_export.checkpoint.generation.chat_templates import ChatTemplates
from autoglm_export.checkpoint.generation.end_tokens import gguf_end_tokens
from autoglm_export.checkpoint.generation.generation_config import bos_token_id, generation_defaults
from autoglm_export.checkpoint.generation.special_tokens import gguf_special_tokens
from autoglm_export.checkpoint.hf_config import Keys, spec_from_config
from autoglm_export.checkpoint.weights import Array, CheckpointWeights, Source, check_counts, weight_shapes
from autoglm_export.errors import TensorError, UnsupportedModel
from autoglm_export.model.spec import Llama3Scaling, ModelSpec, RopeSpec

from .file import GgufFile
from .paths import GgufPaths
from .tokenizer import build_tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3", "glm4")

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
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}

# canonical name -> GGUF name, written as in families.py
NAMES = {
    "embed": "token_embd.weight",
    "lm_head": "output.weight",
    "final_norm": "output_norm.weight",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm.weight",
    "layers.{i}.query.weight": "blk.{i}.attn_q.weight",
    "layers.{i}.query.bias": "blk.{i}.attn_q.bias",
    "layers.{i}.key.weight": "blk.{i}.attn_k.weight",
    "layers.{i}.key.bias": "blk.{i}.attn_k.bias",
    "layers.{i}.value.weight": "blk.{i}.attn_v.weight",
    "layers.{i}.value.bias": "blk.{i}.attn_v.bias",
    "layers.{i}.query_norm": "blk.{i}.attn_q_norm.weight",
    "layers.{i}.key_norm": "blk.{i}.attn_k_norm.weight",
    "layers.{i}.output.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.output.bias": "blk.{i}.attn_output.bias",
    "layers.{i}.post_attention_norm": "blk.{i}.post_attention_norm.weight",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm.weight",
    "layers.{i}.gate.weight": "blk.{i}.ffn_gate.weight",
    "layers.{i}.gate.bias": "blk.{i}.ffn_gate.bias",
    "layers.{i}.up.weight": "blk.{i}.ffn_up.weight",
    "layers.{i}.up.bias": "blk.{i}.ffn_up.bias",
    "layers.{i}.down.weight": "blk.{i}.ffn_down.weight",
    "layers.{i}.down.bias": "blk.{i}.ffn_down.bias",
    "layers.{i}.post_mlp_norm": "blk.{i}.post_ffw_norm.weight",
}
FUSED_UP = {
    "layers.{i}.gate.weight": ("blk.{i}.ffn_up.weight", 0),
    "layers.{i}.up.weight": ("blk.{i}.ffn_up.weight", 1),
}


def open_gguf(paths: GgufPaths, name: str) -> Checkpoint:
    file = GgufFile(*paths.shards)
    spec = spec_from_gguf(file)
    check_counts(spec, file)
    return Checkpoint(
        name=name,
        source=paths.shards[0].name,
        spec=spec,
        weights=CheckpointWeights(
            file, weight_shapes(spec), gguf_sources(spec), lambda name: name == "rope_freqs.weight"
        ),
        tokenizer=checked_tokenizer(build_tokenizer(file).to_str().encode(), spec.vocab_size),
        templates=ChatTemplates(file.get("tokenizer.chat_template"), file.get("tokenizer.chat_template.tool_use")),
        special_tokens=gguf_special_tokens(file),
        eos_token_ids=gguf_end_tokens(file, spec.vocab_size),
        bos_token_id=bos_token_id(spec.vocab_size, {"bos_token_id": file.get("tokenizer.ggml.bos_token_id")}),
        generation_defaults=generation_defaults({}, spec.vocab_size),
    )


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    architecture = file.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(f"the GGUF architecture is {architecture!r}; supported are {', '.join(ARCHITECTURES)}")
    prefix = f"{architecture}."
    metadata = {key.removeprefix(prefix): file.get(key) for key in file.metadata_names() if key.startswith(prefix)}
    if unknown := sorted(metadata.keys() - CONFIG_KEYS.keys() - OTHER_KEYS):
        raise UnsupportedModel(f"the GGUF file has metadata that are not understood: {architecture}.{unknown[0]}")
    return spec_from_config(_as_config(architecture, metadata, file))


def _as_config(architecture: str, metadata: Mapping[str, Any], file: GgufFile) -> dict[str, Any]:
    config = {CONFIG_KEYS[key]: value for key, value in metadata.items() if key in CONFIG_KEYS}
    sizes = Keys(config)
    hidden_size, num_heads = sizes.integer("hidden_size"), sizes.integer("num_attention_heads")
    head_size = config.setdefault("head_dim", hidden_size // num_heads)
    if (value_size := metadata.get("attention.value_length", head_size)) != head_size:
        raise UnsupportedModel(f"attention.value_length is {value_size}; it must be the key length, {head_size}")
    names = file.names()
    if "token_embd.weight" not in names:
        raise TensorError("the checkpoint lacks token_embd.weight")
    return config | {
        "model_type": architecture,
        "vocab_size": file.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in names,
        "partial_rotary_factor": metadata.get("rope.dimension_count", head_size) / head_size,
        "rope_scaling": _scaling(metadata, config, file),
        **({"attention_bias": "blk.0.attn_q.bias" in names} if architecture != "qwen2" else {}),
        **({"mlp_bias": "blk.0.ffn_up.bias" in names} if architecture == "llama" else {}),
    }


def _scaling(metadata: Mapping[str, Any], config: Mapping[str, Any], file: GgufFile) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.names():
        return _llama3_scaling(file.read("rope_freqs.weight", slice(None)), config)
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": metadata.get("rope.scaling.factor")}


def _llama3_scaling(divisors: Array, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF keeps only the resulting divisor of each frequency: find Llama 3's rule again, and accept nothing near
    it."""
    factor, dims, theta = float(divisors.max()), 2 * divisors.size, float(config["rope_theta"])
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


def gguf_sources(spec: ModelSpec) -> dict[str, Source]:
    return {name: _source_of(name, spec) for name in weight_shapes(spec)}


def _source_of(name: str, spec: ModelSpec) -> Source:
    words = name.split(".")
    layer = words[1] if words[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *words[2:]]) if layer else name
    if FAMILIES[spec.family].name == "glm4" and generic in FUSED_UP:
        fused, part = FUSED_UP[generic]
        return Source(fused.format(i=layer), part, 2)
    heads = {"query": spec.num_heads, "key": spec.num_kv_heads}.get(words[2] if layer else "")
    undo = partial(pairs_to_halves, num_heads=heads) if heads and spec.family == "llama" else None
    return Source(NAMES[generic].format(i=layer), undo=undo)


def pairs_to_halves(rows: Array, *, num_heads: int) -> Array:
    """Reorder each head's rows from rotary pairs (0, 1), (2, 3), ... to halves (0, n/2), (1, n/2 + 1), ..."""
    paired = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows.shape))
