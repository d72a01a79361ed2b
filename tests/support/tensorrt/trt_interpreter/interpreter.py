"""Runs a network again and again: see the package docstring for what it follows and what it rounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.support.tensorrt.trt_interpreter.compute import computed
from tests.support.tensorrt.trt_interpreter.dtypes import SIXTEEN_BIT, Array, float32, native, outward
from tests.support.tensorrt.trt_interpreter.layers import Intercept
from tests.support.tensorrt.trt_interpreter.network import Network, Tensor, open_network
from tests.support.tensorrt.trt_interpreter.plan import planned


class Interpreter:
    """Computes a network with NumPy.

    `inputs` and `outputs` are the network's tensors by name. Weights are decoded, and everything that follows from
    weights alone is computed, when it is made; the network is not needed afterwards. `intercept` is asked before each
    layer of a run what the layer is to compute with.
    """

    def __init__(self, network: Any, trt: Any, *, precise: bool = False, intercept: Intercept | None = None) -> None:
        opened = open_network(network, trt)
        self.inputs: Mapping[str, Tensor] = opened.inputs
        self.outputs: Mapping[str, Tensor] = opened.outputs
        self._precise, self._intercept = precise, intercept
        self._caches = _caches(opened)
        self._plan = planned(opened, lambda layer, values: computed(layer, values, precise))

    def run(self, inputs: Mapping[str, Array], *, in_place: bool = False) -> dict[str, Array]:
        """The outputs for `inputs`, both by tensor name, in the types that the network declares.

        Half and bfloat16 outputs are float32 where the interpreter is precise, and such inputs may be. Caches are
        copied before they are updated, unless `in_place`: then the array that was given is written and returned.
        Raises ValueError for an input of another name, type or shape than declared, and for reading what is not
        there: an index out of range, a cache position never written (NaN), a result that is not a number.
        """
        values = {**self._plan.constants, **self._bound(inputs, in_place)}
        for step in self._plan.steps:
            values.update(computed(step.layer, values, self._precise, self._intercept))
            for name in step.done_with:
                del values[name]
        return {name: outward(values[name], tensor.dtype, self._precise) for name, tensor in self.outputs.items()}

    def _bound(self, inputs: Mapping[str, Array], in_place: bool) -> dict[str, Array]:
        if inputs.keys() != self.inputs.keys():
            raise ValueError(f"the network's inputs are {sorted(self.inputs)}, given were {sorted(inputs)}")
        for name, tensor in self.inputs.items():
            self._check(tensor, inputs[name])
        return {
            name: self._cache(name, array, in_place) if name in self._caches else array
            for name, array in inputs.items()
        }

    def _check(self, tensor: Tensor, array: Array) -> None:
        if not tensor.admits(array.shape):
            raise ValueError(f"input {tensor.name!r} is declared {tensor.shape}, given was {array.shape}")
        wider = self._precise and tensor.dtype in SIXTEEN_BIT and array.dtype == np.float32
        if array.dtype != native(tensor.dtype) and not wider:
            raise ValueError(f"input {tensor.name!r} is declared {tensor.dtype}, given was {array.dtype}")

    def _cache(self, name: str, array: Array, in_place: bool) -> Array:
        """The array that updates of the cache `name` are written into."""
        if not in_place:
            return float32(array) if self._precise and array.dtype != np.float32 else array.copy()
        if self._precise and array.dtype != np.float32:
            raise ValueError(
                f"cache {name!r} is updated precisely and in place, so it must be float32, not {array.dtype}"
            )
        return array


def _caches(network: Network) -> frozenset[str]:
    """The inputs that a layer updates in place; ValueError where TensorRT could not give them such an address."""
    updates = [layer for layer in network.layers if layer.kind == "KV_CACHE_UPDATE"]
    for layer in updates:
        cache, present = layer.reads[0], layer.outputs[0].name
        if cache not in network.inputs or present not in network.outputs:
            raise ValueError(f"{layer} updates {cache!r} into {present!r}: not an input and an output of the network")
        readers = [str(reader) for reader in network.layers if cache in reader.reads]
        if len(readers) > 1:
            raise ValueError(
                f"the cache {cache!r} is read by {', '.join(readers)}: it is updated in place by one of them"
            )
    return frozenset(layer.reads[0] for layer in updates)
