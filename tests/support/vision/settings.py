"""The manifest of a model that does not exist, and its `VisionSettings`."""

from __future__ import annotations

from typing import Any

from autoglm_engine.manifest import CacheShape, FileRecord, Manifest, VisionSettings

SETTINGS: dict[str, Any] = {
    "runtime": "onnx",
    "model": "vision.onnx",
    "precision": "fp32",
    "image_token_id": 267,
    "begin_image_token_id": 263,
    "end_image_token_id": 264,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 3136,
    "max_pixels": 100_352,
    "frames": 2,
    "grows_small": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "hidden_size": 64,
    "head_size": 16,
    "rope_theta": 10_000.0,
    "position_table_size": 4,
    "interpolation": "bicubic",
    "mrope_sections": (2, 3, 3),
    "max_images": 10,
}

BLIND = Manifest(
    model_name="tiny",
    family="glm4v",
    runtime="onnx",
    runtime_version="1.0",
    precision="fp32",
    num_slots=2,
    max_length=64,
    prefill_chunk=16,
    vocab_size=288,
    cache=CacheShape(num_layers=2, num_kv_heads=1, head_size=32, dtype="float32"),
    eos_token_ids=(256,),
    bos_token_id=None,
    generation_defaults={},
    spec={},
    files={"vision.onnx": FileRecord(5, "0" * 64)},
)


# Of `tiny_qwen3_vl`.
QWEN3_VL: dict[str, Any] = {
    "image_token_id": 262,
    "begin_image_token_id": 259,
    "end_image_token_id": 260,
    "patch_size": 16,
    "min_pixels": 2048,
    "max_pixels": 65_536,
    "frames": 1,
    "grows_small": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "hidden_size": 192,
    "interpolation": "bilinear",
    "mrope_sections": (6, 5, 5),
}


def vision_settings(**changes: Any) -> VisionSettings:
    return VisionSettings(**{**SETTINGS, **changes})
