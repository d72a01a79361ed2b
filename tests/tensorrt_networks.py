"""Networks as the lowering defines them, for tests: defined, not built; and their layers with all attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt_rtx as trt
from autoglm_export.spec import ModelSpec
from autoglm_export.tensorrt_build import Builder
from autoglm_export.tensorrt_lowering import KV_DTYPES, calibrated, checked_kv_dtype, define, linears_of
from autoglm_export.tensorrt_network import Network

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Defined:
    """`network` owns the constants' values; `scales` are what calibration found."""

    spec: ModelSpec
    network: Network
    builder: Builder
    scales: Mapping[str, Any]

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
    calibration_ids: Sequence[npt.NDArray[np.int32]] = (),
) -> Defined:
    builder = Builder(trt)
    network = Network(trt, builder.handle)
    dtype = KV_DTYPES[checked_kv_dtype(precision, None)]
    scales = calibrated(precision, spec, weights, dtype, calibration_ids)
    define(
        network,
        spec,
        weights,
        linears_of(precision, network, weights, dtype, scales),
        dtype,
        cache_length,
        num_candidates,
    )
    return Defined(spec, network, builder, scales)


def layers_of(definition: Any) -> list[Any]:
    """A network gives its layers as bare `ILayer`s; the class of a layer's type opens its attributes."""
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    for layer in layers:
        words = layer.type.name.split("_")
        layer.__class__ = getattr(trt, _SPECIAL.get(layer.type.name, f"I{''.join(w.capitalize() for w in words)}Layer"))
    return layers


_SPECIAL = {"KV_CACHE_UPDATE": "IKVCacheUpdateLayer", "ELEMENTWISE": "IElementWiseLayer", "TOPK": "ITopKLayer"}
