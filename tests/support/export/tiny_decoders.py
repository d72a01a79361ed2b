"""Tiny random decoders of every variant, and what they compute, written out straight from `spec.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from autoglm_engine.manifest import CacheShape, FileRecord, Manifest
from autoglm_engine.runners.onnx.runner import OnnxRunner
from autoglm_engine.runners.registry import load_runner
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.model.spec import Llama3Scaling, ModelSpec, RopeSpec
from autoglm_export.onnx.lowering import write_onnx

Array = npt.NDArray[np.float32]

_LLAMA = ModelSpec("llama", 97, 48, 2, 6, 2, 16, 64, 1e-5, RopeSpec(1e4, 16, interleaved=False), 256)
_GLM_ROPE = RopeSpec(1e4, 16, interleaved=True)
_LLAMA3 = RopeSpec(1e4, 16, interleaved=False, scaling=Llama3Scaling(8.0, 1.0, 4.0, 64))
SPECS = {
    "llama": _LLAMA,
    "llama-tied": dataclasses.replace(_LLAMA, tied_embeddings=True, rope=_LLAMA3),
    "llama-biased": dataclasses.replace(_LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True),
    "qwen2": dataclasses.replace(_LLAMA, family="qwen2", qkv_bias=True, tied_embeddings=True),
    "qwen3": dataclasses.replace(_LLAMA, family="qwen3", head_size=32, qk_norm=True, rope=RopeSpec(1e6, 32, False)),
    "glm": dataclasses.replace(_LLAMA, family="glm", head_size=32, qkv_bias=True, rope=_GLM_ROPE),
    "glm4": dataclasses.replace(_LLAMA, family="glm4", head_size=32, qkv_bias=True, sandwich_norm=True, rope=_GLM_ROPE),
    "one-kv-head": dataclasses.replace(_LLAMA, num_kv_heads=1, num_layers=1),
}


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, Array]:
    """Norms near 1, everything else near 0, so that a lost or exchanged weight shows."""
    random = np.random.default_rng(seed)
    weights = {name: random.standard_normal(shape) for name, shape in weight_shapes(spec).items()}
    return {
        name: (1 + 0.3 * values if name.endswith("norm") else 0.2 * values).astype(np.float32)
        for name, values in weights.items()
    }


def expected_logits(spec: ModelSpec, weights: Mapping[str, Array], token_ids: npt.NDArray[np.int32]) -> Array:
    """Logits of every position, [num_tokens, vocab_size]: the whole sequence at once, in float64."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def norm(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.norm_eps) * w[name]

    def linear(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def heads(x: npt.NDArray[np.float64], name: str | None) -> npt.NDArray[np.float64]:
        split = x.reshape(len(token_ids), -1, spec.head_size)
        return norm(split, name) if name and spec.qk_norm else split

    x = w["embed"][token_ids]
    for layer in range(spec.num_layers):
        p = f"layers.{layer}."
        h = norm(x, p + "attention_norm")
        query = _turned(spec.rope, heads(linear(h, p + "query"), p + "query_norm"))
        key = _turned(spec.rope, heads(linear(h, p + "key"), p + "key_norm"))
        attended = linear(_attended(spec, query, key, heads(linear(h, p + "value"), None)), p + "output")
        x = x + (norm(attended, p + "post_attention_norm") if spec.sandwich_norm else attended)
        h = norm(x, p + "mlp_norm")
        gate = linear(h, p + "gate")
        out = linear(gate / (1 + np.exp(-gate)) * linear(h, p + "up"), p + "down")
        x = x + (norm(out, p + "post_mlp_norm") if spec.sandwich_norm else out)
    logits = norm(x, "final_norm") @ w["embed" if spec.tied_embeddings else "lm_head"].T
    return logits.astype(np.float32)


def _attended(
    spec: ModelSpec, query: npt.NDArray[np.float64], key: npt.NDArray[np.float64], value: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    result = np.empty_like(query)
    for head in range(spec.num_heads):
        kv = head * spec.num_kv_heads // spec.num_heads
        for t in range(len(query)):
            scores = key[: t + 1, kv] @ query[t, head] / np.sqrt(spec.head_size)
            shares = np.exp(scores - scores.max())
            result[t, head] = shares @ value[: t + 1, kv] / shares.sum()
    return result.reshape(len(query), -1)


def _turned(rope: RopeSpec, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each pair of dimensions is a complex number, turned by its angle."""
    pairs = [(2 * i, 2 * i + 1) if rope.interleaved else (i, i + rope.dims // 2) for i in range(rope.dims // 2)]
    result = x.copy()
    for (a, b), frequency in zip(pairs, rope.inverse_frequencies(), strict=True):
        turn = np.exp(1j * frequency * np.arange(len(x)))[:, None]
        turned = (x[..., a] + 1j * x[..., b]) * turn
        result[..., a], result[..., b] = turned.real, turned.imag
    return result


def onnx_runner(
    folder: Path,
    spec: ModelSpec,
    weights: Mapping[str, Array],
    *,
    precision: str = "fp32",
    num_slots: int = 5,
    max_length: int = 24,
    prefill_chunk: int = 16,
) -> OnnxRunner:
    """Lower, write the manifest, and load as a server would."""
    limits = {"num_slots": num_slots, "max_length": max_length, "prefill_chunk": prefill_chunk}
    details = write_onnx(spec, weights, folder, precision=precision, **limits)
    manifest = Manifest(
        model_name="tiny",
        family=spec.family,
        runtime="onnx",
        runtime_version=onnxruntime.__version__,
        precision=precision,
        vocab_size=spec.vocab_size,
        cache=CacheShape(spec.num_layers, spec.num_kv_heads, spec.head_size, details["cache_dtype"]),
        eos_token_ids=(0,),
        bos_token_id=None,
        generation_defaults={},
        spec=spec.as_json(),
        runtime_details=details,
        files={path.name: FileRecord.of(path) for path in folder.iterdir()},
        **limits,
    )
    manifest.save(folder)
    runner = load_runner(folder, Manifest.load(folder), num_threads=1)
    assert isinstance(runner, OnnxRunner)
    return runner
