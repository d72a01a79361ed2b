"""The vision part of a GLM-4.1V model, which llama.cpp keeps in a file of its own (mmproj).

Names of tensors: `gguf.constants`, by its table for the names of transformers (`gguf.tensor_mapping`). Keys and shapes:
`MmprojModel` and `Glm4VVisionModel` in llama.cpp's conversion/ (base.py, qwen3vl.py; commit 00bd27a), which splits the
kernel of the patches into one a frame and says neither how many patches become one token nor how large images may be.
What it calls feed_forward_length is the merger's width, as in the config that it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_export.checkpoint.image_processor import image_processor
from autoglm_export.checkpoint.vision import VisionCheckpoint, image_tokens
from autoglm_export.checkpoint.vision_families import CLIP_MEAN, CLIP_STD, VISION_FAMILIES, Channels
from autoglm_export.checkpoint.vision_weights import tower_weights
from autoglm_export.checkpoint.weights import Array, Shape
from autoglm_export.errors import CheckpointError, TensorError, UnsupportedModel

from .file import GgufFile

ARCHITECTURE = "clip"
FAMILY = "glm4v"
# canonical name -> GGUF name, written as in vision_families.py
NAMES = {
    "patch_embed": "v.patch_embd",
    "post_conv_norm": "v.norm_embd.weight",
    "position_table": "v.position_embd.weight",
    "blocks.{i}.attention_norm": "v.blk.{i}.ln1.weight",
    "blocks.{i}.query": "v.blk.{i}.attn_qkv#0/3",
    "blocks.{i}.key": "v.blk.{i}.attn_qkv#1/3",
    "blocks.{i}.value": "v.blk.{i}.attn_qkv#2/3",
    "blocks.{i}.output": "v.blk.{i}.attn_out",
    "blocks.{i}.mlp_norm": "v.blk.{i}.ln2.weight",
    "blocks.{i}.gate": "v.blk.{i}.ffn_gate",
    "blocks.{i}.up": "v.blk.{i}.ffn_up",
    "blocks.{i}.down": "v.blk.{i}.ffn_down",
    "post_norm": "v.post_ln.weight",
    "downsample": "mm.patch_merger",
    "merger.projection": "mm.model.fc",
    "merger.norm": "mm.post_norm",
    "merger.gate": "mm.gate",
    "merger.up": "mm.up",
    "merger.down": "mm.down",
}
# GGUF key below `clip.vision.` -> key of vision_config
CONFIG_KEYS = {
    "block_count": "depth",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "projection_dim": "out_hidden_size",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "attention.head_count": "num_heads",
    "attention.layer_norm_epsilon": "rms_norm_eps",
}
_MERGE_SIZE = "spatial_merge_size"
_PROCESSOR_KEYS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
# Keys below `clip.` that say what else there could be.
_SETTLED: dict[str, tuple[Any, ...]] = {
    "projector_type": (FAMILY, None),
    "vision.projector_type": (FAMILY, None),
    "has_vision_encoder": (True,),
    "has_audio_encoder": (False, None),
    "has_llava_projector": (False, None),
    "use_silu": (True,),
    "use_gelu": (False, None),
}
_KERNELS = ("v.patch_embd.weight", "v.patch_embd.weight.1")


def read_projector(path: Path, tokenizer: bytes, decoder_width: int) -> VisionCheckpoint:
    """Of the file `path`, for a decoder of this width. Raises ExportError, naming the key or the tensor."""
    file = GgufFile(path)
    if (architecture := file.get("general.architecture")) != ARCHITECTURE:
        raise CheckpointError(f"{path.name} is no vision part: its architecture is {architecture!r:.40}")
    metadata = {key.removeprefix("clip."): file.get(key) for key in file.metadata_names() if key.startswith("clip.")}
    _check_settled(path.name, metadata)
    tensors, family = _Frames(file), VISION_FAMILIES[FAMILY]
    config = _vision_config(path.name, metadata, tensors)
    spec = family.spec(config, decoder_width)
    same = ("patch_size", "temporal_patch_size")
    processor = {key: _as_written(metadata.get(f"vision.{key}"), known) for key, known in _PROCESSOR_KEYS.items()}
    return VisionCheckpoint(
        spec=spec,
        weights=tower_weights(spec, tensors, NAMES, prefix=""),
        processor=image_processor(
            {**processor, **{key: config[key] for key in same}, "merge_size": spec.merge_size}, spec, family.processor
        ),
        tokens=image_tokens({}, tokenizer, family.tokens),
    )


def _check_settled(name: str, metadata: Mapping[str, Any]) -> None:
    known = {*_SETTLED, *(f"vision.{key}" for key in (*CONFIG_KEYS, *_PROCESSOR_KEYS, _MERGE_SIZE))}
    if unknown := sorted(metadata.keys() - known):
        raise UnsupportedModel(f"{name} has metadata that are not understood: clip.{unknown[0]}")
    for key, allowed in _SETTLED.items():
        if (value := metadata.get(key)) not in allowed:
            raise UnsupportedModel(f"clip.{key} of {name} is {value!r:.40}; only {allowed[0]!r} is supported")
    if not {"projector_type", "vision.projector_type"} & metadata.keys():
        raise CheckpointError(f"{name} lacks clip.projector_type")


def _vision_config(name: str, metadata: Mapping[str, Any], tensors: _Frames) -> dict[str, Any]:
    if missing := [key for key in (*CONFIG_KEYS, *_PROCESSOR_KEYS) if f"vision.{key}" not in metadata]:
        raise CheckpointError(f"{name} lacks clip.vision.{missing[0]}")
    return {
        **{key: metadata[f"vision.{gguf_key}"] for gguf_key, key in CONFIG_KEYS.items()},
        _MERGE_SIZE: metadata.get(f"vision.{_MERGE_SIZE}", 2),
        "temporal_patch_size": len(_KERNELS),
        "attention_bias": "v.blk.0.attn_qkv.bias" in tensors.names(),
    }


def _as_written(values: Any, known: Channels) -> Any:
    """The file has float32; where those are the usual numbers, these themselves, as other checkpoints write them."""
    is_known = isinstance(values, list) and np.array_equal(np.array(known, np.float32), np.array(values, np.float64))
    return known if is_known else values


class _Frames:
    """The tensors of a file (a `TensorStore`); the kernels of a patch's two frames are one again, in a third axis."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        if missing := [name for name in _KERNELS if name not in file.names()]:
            raise TensorError(f"the checkpoint lacks {missing[0]}")
        first, second = map(file.shape, _KERNELS)
        if first != second or len(first) < 2:
            raise TensorError(f"{' and '.join(_KERNELS)} have the shapes {list(first)} and {list(second)}")

    def names(self) -> Collection[str]:
        return set(self._file.names()) - {_KERNELS[1]}

    def shape(self, name: str) -> Shape:
        shape = self._file.shape(name)
        return (*shape[:2], len(_KERNELS), *shape[2:]) if name == _KERNELS[0] else shape

    def read(self, name: str, rows: slice) -> Array:
        if name != _KERNELS[0]:
            return self._file.read(name, rows)
        return np.stack([self._file.read(kernel, rows) for kernel in _KERNELS], axis=2)
