"""Calls of the network: a context whose shapes and addresses are set once a bucket for decode, once a span for prefill.

A decode call computes slots 0 ... bucket - 1, whichever of them are in the step. A CUDA graph is captured for one bucket
and its context is not touched from then on. Everything is created and captured at load: what does not fit shows there,
TensorRT-RTX compiles there, and no stream of a running request ever waits for either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .cuda import Cuda, Graph
from .errors import DeviceError
from .plan import DECODE, PREFILL, Plan
from .tensor_shapes import Shape, TensorShapes

_log = logging.getLogger(__name__)
Addresses = Mapping[str, int]


def buckets_of(num_slots: int) -> list[int]:
    """1, 2, 4, ... and num_slots."""
    powers = [1 << power for power in range(num_slots.bit_length())]
    return [size for size in powers if size < num_slots] + [num_slots]


@dataclass(frozen=True, slots=True)
class CallFactory:
    """Makes calls that share one block of activations. `cleanup` lets go of them, of graphs before their contexts."""

    plan: Plan
    cuda: Cuda
    cleanup: ExitStack
    activations: int  # address
    activation_bytes: int

    def create(self, profile: int) -> Call:
        call = Call(self.plan, self.cuda, self.plan.create_context(profile, self.activations, self.activation_bytes))
        self.cleanup.callback(call.close)
        return call

    def capture(self, call: Call) -> Graph:
        graph = self.cuda.capture(call.enqueue)
        self.cleanup.callback(self.cuda.destroy_graph, graph)
        return graph


class Call:
    """One execution context."""

    def __init__(self, plan: Plan, cuda: Cuda, context: Any) -> None:
        self._plan = plan
        self._cuda = cuda
        self._context = context

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise DeviceError(f"TensorRT refuses {name} of the shape {shape}: {self._plan.said()}")

    def set_addresses(self, addresses: Addresses) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise DeviceError(f"TensorRT refuses the address of {name}: {self._plan.said()}")

    @property
    def is_capturable(self) -> bool:
        """Not every TensorRT can be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._cuda.stream))

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise DeviceError(f"TensorRT could not enqueue a step: {self._plan.said()}")

    def close(self) -> None:
        self._context = None


class DecodeCalls:
    """One call a bucket. `addresses`: of all inputs and outputs, with slot 0 first."""

    def __init__(self, factory: CallFactory, shapes: TensorShapes, addresses: Addresses) -> None:
        self._factory = factory
        self._cuda = factory.cuda
        self._buckets = buckets_of(shapes.num_slots)
        self._calls: dict[int, Call] = {}
        self._graphs: dict[int, Graph] = {}
        self._captures = True
        for bucket in self._buckets:
            call = self._calls[bucket] = factory.create(DECODE)
            call.set_shapes(shapes.inputs(bucket, 1, shapes.cache_length))
            call.set_addresses(addresses)

    def bucket(self, highest_slot: int) -> int:
        """The smallest one that has the slot."""
        return next(bucket for bucket in self._buckets if bucket > highest_slot)

    def prepare(self) -> None:
        """Run each bucket once, which a capture must follow, then capture it. The inputs on the device say that all rows
        are idle. Where a graph cannot be captured, that bucket and those after it are enqueued each time."""
        for bucket, call in self._calls.items():
            call.enqueue()
            self._cuda.synchronize()
            if self._captures:
                self._capture(bucket, call)

    def run(self, bucket: int) -> None:
        """Enqueue the call."""
        if (graph := self._graphs.get(bucket)) is not None:
            self._cuda.launch(graph)
        else:
            self._calls[bucket].enqueue()

    def _capture(self, bucket: int, call: Call) -> None:
        try:
            if not call.is_capturable:
                raise DeviceError("TensorRT says that the engine cannot be captured")
            self._graphs[bucket] = self._factory.capture(call)
        except DeviceError as error:
            self._captures = False
            _log.warning("decode steps are enqueued kernel by kernel, without a CUDA graph: %s", error)


class PrefillCall:
    """One call for all slots, of one span at a time: its addresses move with the slot."""

    def __init__(self, factory: CallFactory, shapes: TensorShapes, addresses: Addresses) -> None:
        """`addresses`: of the tensors that do not move."""
        self._call = factory.create(PREFILL)
        self._length = shapes.prefill_chunk
        self._call.set_shapes(shapes.inputs(1, self._length, shapes.cache_length))
        self._call.set_addresses(addresses)

    def run(self, length: int, addresses: Addresses) -> None:
        """Enqueue the call of `length` tokens. `addresses`: of all other tensors."""
        if length != self._length:
            self._call.set_shapes({"token_ids": (1, length), "position_ids": (1, length)})
            self._length = length
        self._call.set_addresses(addresses)
        self._call.enqueue()
