"""A few layers of a decoder stand for all of them: a step of the whole takes so many times as long as it has more
layers."""

from __future__ import annotations

import dataclasses
import math

from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.model.spec import ModelSpec

STREAMED_BYTES = 64 << 20  # more than the caches of common processors hold, so that weights come from memory, as all do
MIN_VOCABULARY = 256


def reduced(spec: ModelSpec) -> ModelSpec:
    """As few layers as have STREAMED_BYTES of weights in int8, with a share of the vocabulary that is theirs of the
    layers."""
    share = sum(matrix_sizes(spec)) / spec.num_layers
    num_layers = max(1, min(spec.num_layers, math.ceil(STREAMED_BYTES / share)))
    vocab_size = max(MIN_VOCABULARY, -(-spec.vocab_size * num_layers // spec.num_layers))
    return dataclasses.replace(spec, num_layers=num_layers, vocab_size=min(spec.vocab_size, vocab_size))


def matrix_sizes(spec: ModelSpec) -> list[int]:
    """Weights of each matrix that every step reads; a tied embedding is one."""
    shapes = weight_shapes(spec)
    if not spec.tied_embeddings:
        del shapes["embed"]  # a step reads a row a token of it
    return [math.prod(shape) for shape in shapes.values() if len(shape) > 1]
