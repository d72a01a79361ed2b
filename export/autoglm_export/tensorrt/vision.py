"""The vision tower as a TensorRT engine: one image a run, of any size, in one optimisation profile.

The engine's tensors, for an image of N patches (`autoglm_engine.vision.geometry` computes all inputs but the first):

    patches                       float32 [N, 3 * patch_size^2]
    row_weights, column_weights   float32 [N, position_table_size]   of the learned positions, of each patch its own
    rope_cos, rope_sin            float32 [N, head_size / 2]
    features                      float32 [number of tokens, feature_size]

Products with weights and attention are in 16 bits; the residual stream, norms, rope, gating and the interpolation of
the position table are float32, and TensorRT is told not to round float32's products to TF32. Attention is TensorRT's
layer without a mask: the scores of all pairs, 12 x 13,416^2 of them for a phone's screen, are never in memory where
there is a fused kernel. Where there is none the layer is taken apart, and they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.manifest import VisionSettings

from autoglm_export.checkpoint.vision_weights import stored_shapes
from autoglm_export.checkpoint.weights import Array, CountedWeights
from autoglm_export.model.vision import build_tower
from autoglm_export.model.vision_spec import VisionSpec
from autoglm_export.runtimes import Progress, no_progress

from .build import Builder, BuildSettings, Profile, Shape
from .forms import Attempt, Built, build_in_a_form
from .linear import HalfLinears
from .module import MODULES, load_tensorrt
from .network import Network, Tensor
from .norms import layer_norm, rms_norm
from .options import KV_DTYPES, checked_capabilities
from .timing import timing_cache

VISION_ENGINE = "vision.plan"
_STAGE = "write vision tower"
_USUAL_TOKENS = 3354  # of a phone's screen of 1080 x 2400 pixels, that kernels are timed for
ATTEMPTS = (
    Attempt("fused", 1, ""),
    Attempt("decomposed", 1, "TensorRT has no fused kernel for the tower's attention; it needs room for all scores"),
)
_BATCH, _SEQUENCE, _HEADS, _SIZE = range(4)  # axes of [1, N, heads, head_size]


class TensorRTVisionOps:
    """`VisionOps` over the tensors of a network: float32 `[1, rows, width]`. `dtype`: of products, of 16 bits."""

    def __init__(
        self, network: Network, spec: VisionSpec, weights: Mapping[str, Array], dtype: Any, *, decomposable: bool
    ) -> None:
        self._network, self._spec, self._weights = network, spec, weights
        self._dtype, self._decomposable = np.dtype(dtype), decomposable
        self._linears = HalfLinears(network, weights, dtype)
        self._num_attentions = 0
        self._patches = self._input("patches", spec.patch_width)
        names = ("row_weights", "column_weights")
        self._row_weights, self._column_weights = (self._input(name, spec.position_table_size) for name in names)
        self._cos, self._sin = (self._turns(name) for name in ("rope_cos", "rope_sin"))

    def patches(self) -> Tensor:
        return self._network.reshape(self._patches, 1, -1, self._spec.patch_width)

    def positions(self, table: str) -> Tensor:
        """A sum over the whole table for each patch: its weights are products of a row's and a column's.

        Along rows first, then along columns, would be a grid of rows x columns, and TensorRT keeps room for the most
        rows times the most columns of the profile, which no image has together: 34 GB.
        """
        network, size = self._network, self._spec.position_table_size
        rows = network.reshape(self._row_weights, 1, -1, size, 1)
        columns = network.reshape(self._column_weights, 1, -1, 1, size)
        weights = network.reshape(network.binary("PROD", rows, columns), 1, -1, size**2)
        learned = network.constant(table, self._weights[table][None])
        return network.matmul(f"{table}.interpolated", weights, learned, transposed=False)

    def rms_norm(self, x: Tensor, weight: str) -> Tensor:
        return rms_norm(self._network, x, weight, self._weights[weight], self._spec.norm_eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: str) -> tuple[Tensor, Tensor]:
        total = self._network.binary("SUM", x, delta)
        return total, self.rms_norm(total, weight)

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return self._layer_norm(x, name, self._spec.merger_norm_eps)

    def add_layer_norm(self, x: Tensor, delta: Tensor, name: str) -> tuple[Tensor, Tensor]:
        total = self._network.binary("SUM", x, delta)
        return total, self._layer_norm(total, name, self._spec.norm_eps)

    def linear(self, x: Tensor, layer: str) -> Tensor:
        product = self._linears.linear(x, (layer,))
        if f"{layer}.bias" not in self._weights:
            return product
        bias = self._network.constant(f"{layer}.bias", self._weights[f"{layer}.bias"][None, None])
        return self._network.binary("SUM", product, bias)

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        network, spec = self._network, self._spec
        scale = network.constant("attention_scale", np.full((1, 1, 1, 1), spec.head_size**-0.5, np.float32))
        turned = network.binary("PROD", self._turned(query), scale), self._turned(key)
        rows = [self._narrowed(x) for x in (*turned, self._heads(value))]
        name = f"blocks.{self._num_attentions}.attention"
        self._num_attentions += 1
        attended = network.attention(name, *rows, mask=None, decomposable=self._decomposable)
        joined = network.transpose(network.cast(attended, np.float32), _BATCH, _HEADS, _SEQUENCE, _SIZE)
        return network.reshape(joined, 1, -1, spec.hidden_size)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        silu = self._network.binary("PROD", gate, self._network.sigmoid(gate))
        return self._network.binary("PROD", silu, up)

    def gelu(self, x: Tensor) -> Tensor:
        return self._network.gelu(x)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return self._network.gelu_tanh(x)

    def join(self, x: Tensor) -> Tensor:
        return self._network.reshape(x, 1, -1, self._spec.joined_size)

    def features(self, *parts: Tensor) -> None:
        joined = self._network.concatenation(parts, axis=2) if len(parts) > 1 else parts[0]
        self._network.output("features", self._network.reshape(joined, -1, self._spec.feature_size))

    def _layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        weight, bias = (self._weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return layer_norm(self._network, x, name, weight, bias, epsilon)

    def _input(self, name: str, width: int) -> Tensor:
        """float32 [N, width]. Dimensions of one name are equal."""
        tensor = self._network.input(name, np.float32, [-1, width])
        tensor.set_dimension_name(0, "num_patches")
        return tensor

    def _turns(self, name: str) -> Tensor:
        """[1, N, head_size / 2]"""
        half = self._spec.head_size // 2
        return self._network.reshape(self._input(name, half), 1, -1, half)

    def _heads(self, x: Tensor) -> Tensor:
        """[1, N, hidden_size] -> [1, heads, N, head_size]"""
        heads = self._network.reshape(x, 1, -1, self._spec.num_heads, self._spec.head_size)
        return self._network.transpose(heads, _BATCH, _HEADS, _SEQUENCE, _SIZE)

    def _turned(self, x: Tensor) -> Tensor:
        layer = self._network.definition.add_rotary_embedding(
            self._heads(x), self._cos, self._sin, False, self._spec.head_size
        )
        return layer.get_output(0)

    def _narrowed(self, x: Tensor) -> Tensor:
        """Rounded to 16 bits; float16 is widened again, as in `tensorrt/attention.py`."""
        narrow = self._network.cast(x, self._dtype)
        return self._network.cast(narrow, np.float32) if self._dtype == np.float16 else narrow


def define_tower(
    network: Network, spec: VisionSpec, weights: Mapping[str, Array], dtype: Any, *, form: str = "fused"
) -> None:
    """Add the tower to an empty network."""
    build_tower(spec, TensorRTVisionOps(network, spec, weights, dtype, decomposable=form == "decomposed"))


def write_vision_engine(
    spec: VisionSpec,
    weights: Mapping[str, Array],
    settings: VisionSettings,
    folder: Path,
    *,
    compute_capabilities: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Built:
    """Build the engine of `settings.runtime` in `settings.precision`, fp16 or bf16, as `settings.model` into `folder`.
    Raises InvalidOption for other targets than the runtime's, ExportError where TensorRT is missing or cannot build."""
    targets = checked_capabilities(settings.runtime, settings.precision, compute_capabilities)
    module = MODULES[settings.runtime]
    builder = Builder(load_tensorrt(module))
    build_settings = BuildSettings(
        profiles=(tower_profile(spec, settings.largest_tokens),),
        compute_capabilities=tuple(f"SM{target.replace('.', '')}" for target in targets),
        timing_cache=timing_cache(module, folder),
        rounds_float32=False,
    )

    def define(form: str) -> Network:
        network = Network(builder.trt, builder.handle)
        read = CountedWeights(stored_shapes(spec), weights, progress, _STAGE)
        define_tower(network, spec, read, KV_DTYPES[settings.precision], form=form)
        progress(_STAGE, 1.0)
        return network

    def build(network: Network, _: int) -> None:
        told = partial(_told, progress)
        builder.build(network.definition, folder / settings.model, build_settings, told)

    shape = f"{spec.num_heads} heads of {spec.head_size}, {settings.precision}"
    return build_in_a_form(define, build, None, shape, ATTEMPTS)


def _told(progress: Progress, stage: str, fraction: float) -> None:
    progress("build vision tower", fraction)


def tower_profile(spec: VisionSpec, most_tokens: int) -> Profile:
    """From one token to as many as an image can be; usually a phone's screen."""
    patches, shapes = spec.merge_size**2, partial(_shapes, spec)
    usual = min(_USUAL_TOKENS, most_tokens)
    return Profile("image", shapes(patches), shapes(usual * patches), shapes(most_tokens * patches))


def _shapes(spec: VisionSpec, num_patches: int) -> dict[str, Shape]:
    half, table = spec.head_size // 2, spec.position_table_size
    widths = {
        "patches": spec.patch_width,
        "row_weights": table,
        "column_weights": table,
        "rope_cos": half,
        "rope_sin": half,
    }
    return {name: (num_patches, width) for name, width in widths.items()}
