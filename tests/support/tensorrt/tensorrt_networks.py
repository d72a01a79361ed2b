"""Networks as the lowering defines them, for tests: defined, not built; and their layers with all attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt_rtx as trt
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.calibration import Calibration
from autoglm_export.tensorrt.build import Builder
from autoglm_export.tensorrt.lowering import define, linears_of
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.options import KV_DTYPES, checked_kv_dtype

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Defined:
    """`network` owns the constants' values. `scales`: layers -> what was made of them, `Int4Weight` or fp8's largest
    input."""

    spec: ModelSpec
    network: Network
    builder: Builder
    scales: dict[tuple[str, ...], Any]

    @property
    def definition(self) -> Any:
        return self.network.definition


def define_network(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    precision: str,
    *,
    cache_length: int,
    num_candidates: int,
    texts: Sequence[npt.NDArray[np.int32]] = (),
    kv_dtype: str | None = None,
    attention: str = "fused",
    feature_rows: int = 0,
) -> Defined:
    builder = Builder(trt)
    network = Network(trt, builder.handle)
    dtype = KV_DTYPES[checked_kv_dtype(precision, kv_dtype)]
    linears = linears_of(precision, network, spec, weights, dtype, Calibration(spec, weights, texts) if texts else None)
    scales: dict[tuple[str, ...], Any] = {}
    for name in ("quantize", "largest_input"):
        if hasattr(linears, name):
            setattr(linears, name, noted(getattr(linears, name), scales))
    sizes = {"num_candidates": num_candidates, "feature_rows": feature_rows}
    define(network, spec, weights, linears, dtype, cache_length, attention=attention, **sizes)
    return Defined(spec, network, builder, scales)


def noted(make: Callable[[Sequence[str]], Any], made: dict[tuple[str, ...], Any]) -> Callable[[Sequence[str]], Any]:
    def make_and_note(layers: Sequence[str]) -> Any:
        made[tuple(layers)] = make(layers)
        return made[tuple(layers)]

    return make_and_note


def layers_of(definition: Any) -> list[Any]:
    """A network gives its layers as bare `ILayer`s; the class of a layer's type opens its attributes."""
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    for layer in layers:
        words = layer.type.name.split("_")
        layer.__class__ = getattr(trt, _SPECIAL.get(layer.type.name, f"I{''.join(w.capitalize() for w in words)}Layer"))
    return layers


_SPECIAL = {"KV_CACHE_UPDATE": "IKVCacheUpdateLayer", "ELEMENTWISE": "IElementWiseLayer", "TOPK": "ITopKLayer"}
