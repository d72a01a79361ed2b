"""What llama.cpp's converters make of a transformers model: the keys and tensors of published GGUF files.

Keys: `set_gguf_parameters` of the classes in llama.cpp's conversion/ (base.py, llama.py, chatglm.py, glm.py,
qwen3vl.py; commit 00bd27a). Names of tensors: the tables that they use, in the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, Any]
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "glm": "chatglm",
    "glm4": "glm4",
    "glm4v": "glm4",
}
COMMON = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "rope.freq_base", "attention.layer_norm_rms_epsilon"),
)
HEAD_SIZE = ("attention.key_length", "attention.value_length")
KEYS = {
    "llama": (*COMMON, *HEAD_SIZE, "vocab_size", "rope.dimension_count"),
    "qwen2": COMMON,
    "qwen3": (*COMMON, *HEAD_SIZE),
    "glm": (*COMMON, "rope.dimension_count"),
    "glm4": (*COMMON, *HEAD_SIZE, "rope.dimension_count"),
    "glm4v": (*COMMON, "rope.dimension_count", "rope.dimension_sections"),
}
GENERAL = {"general.type": "model", "general.name": "Tiny", "general.file_type": 1, "general.quantization_version": 2}
GENERAL |= {"quantize.imatrix.file": "some.imatrix", "quantize.imatrix.chunks_count": 128}


def write_model(
    path: Path, model: Any, tokenizer: Mapping[str, Any], *, fused_qkv: bool = False, kind: str = "F32"
) -> Path:
    """The decoder of `model`, its matrices as blocks of `kind`. `tokenizer`: its metadata."""
    metadata, tensors = converted_metadata(model), decoder_tensors(model, fused_qkv=fused_qkv)
    write(path, ARCHITECTURES[model.config.model_type], {**metadata, **tokenizer}, tensors, kind)
    return path


def converted_metadata(model: Any) -> dict[str, Any]:
    family, values = model.config.model_type, _values(model)
    return {**GENERAL, **{f"{ARCHITECTURES[family]}.{key}": values[key] for key in KEYS[family]}}


def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Tensors, kind: str = "F32") -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_field(writer, key, value)
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and kind != "F32":
            writer.add_tensor(name, quantised(tensor, kind), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {list: writer.add_array, bool: writer.add_bool, str: writer.add_string, float: writer.add_float32}
    adders.get(type(value), writer.add_uint32)(key, value)


def quantised(tensor: Any, kind: str) -> Any:
    """Blocks of `kind`. The library quantises only to some types: of the others, random bytes with small scales."""
    quantisation = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quants.quantize(np.ascontiguousarray(tensor, np.float32), quantisation)
    except NotImplementedError:
        num_values, num_bytes = gguf.GGML_QUANT_SIZES[quantisation]
        rng = np.random.default_rng(tensor.size)
        blocks = rng.integers(0, 256, (tensor.size // num_values, num_bytes), dtype=np.uint8)
        places, size = SCALES[kind]
        for place in places:
            scale = rng.uniform(size / 2, size, len(blocks)).astype(np.float16)
            blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
        return blocks.reshape(tensor.shape[0], -1)


# Where the scales of a block lie, each a float16 (`block_*` in ggml's ggml-common.h), and one that gives small numbers.
SCALES = {
    "Q2_K": ((80, 82), 2e-3),
    "Q3_K": ((108,), 1e-3),
    "Q4_K": ((0, 2), 2e-4),
    "Q5_K": ((0, 2), 1e-4),
    "Q6_K": ((208,), 5e-5),
    "IQ4_NL": ((0,), 1e-3),
    "IQ4_XS": ((0,), 5e-5),
}


def _values(model: Any) -> dict[str, Any]:
    config = model.config.get_text_config()
    rope = config.rope_parameters
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head_size * rope.get("partial_rotary_factor", 1.0)),
        "rope.dimension_sections": [*rope.get("mrope_section", ()), 0],
        "vocab_size": config.vocab_size,
    }


def decoder_tensors(model: Any, *, fused_qkv: bool = False) -> Tensors:
    config, family = model.config.get_text_config(), model.config.model_type
    is_tied = bool(model.config.tie_word_embeddings)
    table = gguf.get_tensor_name_map(_architecture(ARCHITECTURES[family]), config.num_hidden_layers)
    tensors: Tensors = {}
    for name, parameter in model.state_dict().items():
        if "visual." in name or (name == "lm_head.weight" and is_tied):
            continue
        found = table.get_name(name.replace("language_model.", ""), try_suffixes=(".weight", ".bias"))
        tensors[found] = _reordered(found, parameter.float().numpy(), config, family)
    if fused_qkv:
        for layer, kind in ((i, kind) for i in range(config.num_hidden_layers) for kind in ("weight", "bias")):
            parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}", None) for part in "qkv"]
            if parts[0] is not None:
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    return tensors


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _reordered(name: str, rows: Any, config: Any, family: str) -> Any:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or family not in ("llama", "glm4v"):
        return rows
    size = len(rows) // heads
    if family == "llama":
        order = [half * size // 2 + i for i in range(size // 2) for half in (0, 1)]
    else:
        dims = int(size * config.rope_parameters["partial_rotary_factor"])
        order = [*range(0, dims, 2), *range(1, dims, 2), *range(dims, size)]
    return rows[np.concatenate([head * size + np.array(order) for head in range(heads)])]


def write_projector(
    path: Path, model: Any, image_mean: list[float], image_std: list[float], *, without: str = "", **changes: Any
) -> Path:
    """The tower of a glm4v model, without one of its tensors. `changes`: of the metadata."""
    vision = model.config.vision_config
    metadata: dict[str, Any] = {
        "general.type": "mmproj",
        "general.file_type": 0,
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": model.config.get_text_config().hidden_size,
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.depth,
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.image_mean": image_mean,
        "clip.vision.image_std": image_std,
        "clip.projector_type": "glm4v",
        "clip.use_silu": True,
        "clip.vision.attention.layer_norm_epsilon": float(vision.rms_norm_eps),
    }
    known = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    tensors = {name: tensor for name, tensor in projector_tensors(model).items() if name != without}
    write(path, "clip", known, tensors)
    return path


def projector_tensors(model: Any) -> Tensors:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, model.config.vision_config.depth)
    tensors: Tensors = {}
    for name, parameter in model.state_dict().items():
        if not name.startswith("model.visual."):
            continue
        values = parameter.float().numpy()
        if name == "model.visual.patch_embed.proj.weight":  # one two-dimensional kernel a frame
            tensors["v.patch_embd.weight"], tensors["v.patch_embd.weight.1"] = values[:, :, 0], values[:, :, 1]
            continue
        tensors[table.get_name(name.removeprefix("model."), try_suffixes=(".weight", ".bias"))] = values
    return {name: np.ascontiguousarray(values) for name, values in tensors.items()}
