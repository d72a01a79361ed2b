"""Norms of the last axis, in float32. `name`: of what scales them, a constant of the network."""

from __future__ import annotations

import numpy as np

from autoglm_export.checkpoint.weights import Array

from .network import Network, Tensor


def rms_norm(network: Network, x: Tensor, name: str, weight: Array, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight."""
    return _scaled(network, _over_length(network, x, epsilon), name, weight)


def layer_norm(network: Network, x: Tensor, name: str, weight: Array, bias: Array, epsilon: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias."""
    centred = network.binary("SUB", x, network.reduce("AVG", x, axis=len(x.shape) - 1))
    scaled = _scaled(network, _over_length(network, centred, epsilon), f"{name}.weight", weight)
    return network.binary("SUM", scaled, _along_rows(network, x, f"{name}.bias", bias))


def _over_length(network: Network, x: Tensor, epsilon: float) -> Tensor:
    mean_square = network.reduce("AVG", network.binary("PROD", x, x), axis=len(x.shape) - 1)
    shape = (1,) * len(x.shape)
    smallest = network.constant(f"epsilon_{epsilon}_{len(shape)}", np.full(shape, epsilon, np.float32))
    return network.binary("DIV", x, network.unary("SQRT", network.binary("SUM", mean_square, smallest)))


def _scaled(network: Network, x: Tensor, name: str, weight: Array) -> Tensor:
    return network.binary("PROD", x, _along_rows(network, x, name, weight))


def _along_rows(network: Network, x: Tensor, name: str, values: Array) -> Tensor:
    return network.constant(name, values.reshape(*(1,) * (len(x.shape) - 1), -1))
