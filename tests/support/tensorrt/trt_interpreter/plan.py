"""What to compute and when: the layers that the outputs need, in order, with all that is constant computed already."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.support.tensorrt.trt_interpreter.compute import AS_HELD
from tests.support.tensorrt.trt_interpreter.constants import constant_values
from tests.support.tensorrt.trt_interpreter.dtypes import Array, float32
from tests.support.tensorrt.trt_interpreter.network import Layer, Network

# they have a row's state, whatever their inputs are
NEVER_FOLDED = frozenset({"ATTENTION_INPUT", "ATTENTION_OUTPUT", "KV_CACHE_UPDATE"})


@dataclass(frozen=True, slots=True)
class Step:
    """A layer that every run computes, and the tensors that no later step needs."""

    layer: Layer
    done_with: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The constants that the steps read, by tensor name, and the steps in order."""

    constants: Mapping[str, Array]
    steps: tuple[Step, ...]


def planned(network: Network, compute: Callable[[Layer, Mapping[str, Array]], dict[str, Array]]) -> Plan:
    """The plan for `network`, whose layers `compute` computes; ValueError where a tensor comes from nowhere or
    twice."""
    left, constants = _folded(_ordered(network), network.outputs, compute)
    computing = {name for layer in left if layer.kind not in AS_HELD for name in layer.reads}
    ready = {name: float32(array) if name in computing else array for name, array in constants.items()}
    return Plan(ready, tuple(_steps(left, frozenset(network.outputs))))


def _makers(network: Network) -> dict[str, int]:
    """The index of the layer that gives each tensor."""
    makers: dict[str, int] = {}
    for index, layer in enumerate(network.layers):
        for tensor in layer.outputs:
            if tensor.name in makers or tensor.name in network.inputs:
                raise ValueError(f"{layer} gives {tensor.name!r}, which is there already")
            makers[tensor.name] = index
    return makers


def _ordered(network: Network) -> list[Layer]:
    """The layers that the outputs need, each after those it reads and as close to its first reader as can be."""
    makers, order, entered = _makers(network), dict[int, Layer](), set[int]()
    stack = list(network.outputs)[::-1]
    while stack:
        name = stack[-1]
        if name in network.inputs or makers.get(name) in order:
            stack.pop()
            continue
        if name not in makers:
            raise ValueError(f"no layer gives {name!r}")
        index = makers[name]
        layer = network.layers[index]
        waiting = [read for read in layer.reads if read not in network.inputs and makers.get(read) not in order]
        if not waiting:
            order[index] = layer
        elif index in entered:
            raise ValueError(f"{layer} reads what it gives")
        entered.add(index)
        stack.extend(reversed(waiting))
    return list(order.values())


def _folded(
    layers: Iterable[Layer],
    outputs: Iterable[str],
    compute: Callable[[Layer, Mapping[str, Array]], dict[str, Array]],
) -> tuple[list[Layer], dict[str, Array]]:
    """The layers that depend on an input, and the constants that they read; others are dropped on the way."""
    layers = list(layers)
    left, constants = list[Layer](), dict[str, Array]()
    readers = Counter(name for layer in layers for name in layer.reads) + Counter(list(outputs))
    for layer in layers:
        if layer.kind == "CONSTANT":
            (tensor,) = layer.outputs
            constants[tensor.name] = constant_values(layer.weights, tensor.dtype, tensor.shape)
        elif layer.kind in NEVER_FOLDED or not constants.keys() >= set(layer.reads):
            left.append(layer)
        else:
            constants.update(compute(layer, constants))
            readers.subtract(layer.reads)
            constants = {name: array for name, array in constants.items() if readers[name] > 0}
    return left, constants


def _steps(layers: list[Layer], outputs: frozenset[str]) -> Iterable[Step]:
    last = {name: index for index, layer in enumerate(layers) for name in layer.reads}
    for index, layer in enumerate(layers):
        done = {name for name in layer.reads if last[name] == index} - outputs
        yield Step(layer, tuple(sorted(done)))
