"""`ModelSpec`: everything about a decoder's mathematics, normalised once. Nothing downstream reads a Hugging Face
config.

Weights travel beside it as a mapping from these names to arrays (`i`: layer; shapes as in torch's Linear, [out, in]):

    embed                              [vocab_size, hidden_size]
    layers.i.attention_norm            [hidden_size]
    layers.i.{query,key,value}.weight  [num_heads or num_kv_heads * head_size, hidden_size]  (+ .bias where qkv_bias)
    layers.i.{query,key}_norm          [head_size]                                           where qk_norm
    layers.i.output.weight             [hidden_size, num_heads * head_size]                  (+ .bias where output_bias)
    layers.i.post_attention_norm       [hidden_size]                                         where sandwich_norm
    layers.i.mlp_norm                  [hidden_size]
    layers.i.{gate,up}.weight          [intermediate_size, hidden_size]                      (+ .bias where mlp_bias)
    layers.i.down.weight               [hidden_size, intermediate_size]                      (+ .bias where mlp_bias)
    layers.i.post_mlp_norm             [hidden_size]                                         where sandwich_norm
    final_norm                         [hidden_size]
    lm_head                            [vocab_size, hidden_size]                             unless tied_embeddings

A layer computes, with `norm` an RMS norm in float32 and `post` the identity unless sandwich_norm:
    x = x + post_attention(output(attention(rope(query), rope(key), value of attention_norm(x))))
    x = x + post_mlp(down(silu(gate(mlp_norm(x))) * up(mlp_norm(x))))
and behind layer i < num_deepstack the rows of images' tokens get part i + 1 of their features added.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autoglm_export.reproducible.transcendental import power, sine_cosine


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Rope scaling of Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding of the first `dims` of each head.

    `interleaved` rotates the pairs (0, 1), (2, 3), ...; otherwise (0, dims/2), (1, dims/2 + 1), ...

    `sections` (M-RoPE): a token has three positions, of time, row and column, and each rotates so many pairs. They are
    the first ones, the next and the rest; with `mixed_sections` they take turns, until rows and columns have theirs and
    all others are of time. A token of a text has three equal positions, and is rotated as without sections. Empty for a
    decoder that takes no images.
    """

    theta: float
    dims: int
    interleaved: bool
    scaling: Llama3Scaling | float | None = None  # a float divides every frequency (linear scaling)
    sections: tuple[int, ...] = ()  # three, of dims / 2 pairs together
    mixed_sections: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """Of each pair the position that rotates it: 0 for time, 1 for row, 2 for column. Empty without sections."""
        if not self.mixed_sections:
            return tuple(axis for axis, size in enumerate(self.sections) for _ in range(size))
        turns = (pair % 3 for pair in range(self.dims // 2))
        return tuple(axis if pair < 3 * self.sections[axis] else 0 for pair, axis in enumerate(turns))

    @property
    def pairs_by_axis(self) -> tuple[int, ...]:
        """All pairs: those that time rotates, then those of rows, then those of columns, each in their order."""
        axes = self.axes or (0,) * (self.dims // 2)
        return tuple(sorted(range(len(axes)), key=axes.__getitem__))

    def inverse_frequencies(self) -> npt.NDArray[np.float64]:
        """[dims / 2], radians a position."""
        return _inverse_frequencies(self)

    def sines_and_cosines(self, length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of the positions 0 ... length - 1, `[length, dims / 2]` each."""
        return sine_cosine(np.arange(length)[:, None] * self.inverse_frequencies())


@lru_cache
def _inverse_frequencies(rope: RopeSpec) -> npt.NDArray[np.float64]:
    frequencies = power(rope.theta, [(-i, rope.dims) for i in range(0, rope.dims, 2)])
    if isinstance(rope.scaling, Llama3Scaling):
        frequencies = _llama3_scaled(frequencies, rope.scaling)
    else:
        frequencies = frequencies / (rope.scaling or 1.0)
    frequencies.flags.writeable = False
    return frequencies


def _llama3_scaled(frequencies: npt.NDArray[np.float64], scaling: Llama3Scaling) -> npt.NDArray[np.float64]:
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor


@dataclass(frozen=True, slots=True)
class ModelSpec:
    family: Literal["llama", "qwen2", "qwen3", "qwen3_vl", "glm", "glm4", "glm4v"]
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    max_position: int
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norm: bool = False
    tied_embeddings: bool = False
    num_deepstack: int = 0  # first layers, behind each of which an image's tokens get further features

    @property
    def feature_size(self) -> int:
        """Numbers of a row of an image's features: in place of the embedding, then those of each deepstack layer."""
        return (1 + self.num_deepstack) * self.hidden_size

    @property
    def takes_images(self) -> bool:
        """Tokens may be rows of features in place of embeddings, and have positions by `rope.sections`."""
        return bool(self.rope.sections)

    def without_images(self) -> ModelSpec:
        """The same decoder for texts alone."""
        rope = dataclasses.replace(self.rope, sections=(), mixed_sections=False)
        return dataclasses.replace(self, rope=rope, num_deepstack=0)

    def as_json(self) -> dict[str, Any]:
        """For a manifest. What a family lacks is not said, so that its artifacts stay what they were."""
        raw = dataclasses.asdict(self)
        if not self.takes_images:
            del raw["rope"]["sections"]
        if not self.rope.mixed_sections:
            del raw["rope"]["mixed_sections"]
        if not self.num_deepstack:
            del raw["num_deepstack"]
        return raw
