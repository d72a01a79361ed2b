"""A model that is only a shape: its spec, and what a step must read of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.tensorrt.linear import fp8_kept_layers

# Bytes of one weight of a linear layer. int4: a 2-byte scale for each block of 128 weights beside them.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 2 / 128}
_CACHE_BYTES = {"fp32": 4}  # of one number in the cache, else 2


@dataclass(frozen=True, slots=True)
class Shape:
    """GLM-4-9B as it stands (GLM-4-9B-0414 and, with biases, the text part of GLM-4.1V-9B and AutoGLM-Phone-9B)."""

    num_layers: int = 40
    hidden_size: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 2
    head_size: int = 128
    intermediate_size: int = 13696
    vocab_size: int = 151552

    def spec(self, max_length: int) -> ModelSpec:
        return ModelSpec(
            family="glm4",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            intermediate_size=self.intermediate_size,
            norm_eps=1e-5,
            rope=RopeSpec(theta=10000.0, dims=self.head_size // 2, interleaved=True),
            max_position=max_length,
            sandwich_norm=True,
        )


def num_parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(spec).values())


def weight_bytes_read(spec: ModelSpec, precision: str) -> int:
    """Bytes of weights that any decode step must read: every linear layer and the output layer once, whatever the
    batch.

    Not counted: the embedding, of which a step reads a row a token, unless it is the output layer as well. The output
    layer, norms, biases and what fp8 leaves out stay in two bytes (four in fp32).
    """
    small = WEIGHT_BYTES["fp32" if precision == "fp32" else "fp16"]
    kept = {"embed", "lm_head"} | {f"{name}.weight" for name in (fp8_kept_layers(spec) if precision == "fp8" else ())}
    total = 0.0
    for name, shape in weight_shapes(spec).items():
        if name == "embed" and not spec.tied_embeddings:
            continue
        total += math.prod(shape) * (WEIGHT_BYTES[precision] if len(shape) > 1 and name not in kept else small)
    return round(total)


def cache_bytes_per_token(spec: ModelSpec, precision: str) -> int:
    """Keys and values of one token over all layers."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_size * _CACHE_BYTES.get(precision, 2)


def step_bytes(spec: ModelSpec, precision: str, batch: int, length: int) -> int:
    """Bytes that a decode step of `batch` sequences with `length` tokens each must read."""
    return weight_bytes_read(spec, precision) + batch * length * cache_bytes_per_token(spec, precision)


def floor_ms(num_bytes: int, bytes_per_second: float) -> float:
    """No step that reads `num_bytes` can be faster on this memory."""
    return 1e3 * num_bytes / bytes_per_second
