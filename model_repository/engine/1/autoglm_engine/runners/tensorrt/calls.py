"""Calls of the network: a context whose shapes and addresses are set once for decode, before each call for prefill.

A decode call computes slots 0 ... rows - 1, whichever of them are in the step, and its attention reads the first `keys`
positions of each: what a step costs follows the longest of its rows, not what a slot can hold. 16 rows at 1,000 tokens
of slots of 25,600 read 16 x 1,024 x 40,960 bytes = 0.67 GB of GLM-4-9B's keys and values beside 17.6 GB of weights, and
not 16.8. A CUDA graph is captured for each (rows, keys) and its context is not touched from then on. That is at most 9
x 5 = 45 graphs for 256 slots (40 for 128, 25 for 16), each run once and captured at load: some 10 MB and, without
compilation, some 50 ms each are to be expected of a graph of 900 kernels; the runner tells what they took.

A prefill call computes a few consecutive slots wherever they lie (`prefill_batches`), so the addresses of the cache
move from call to call, and a graph has its addresses inside: one for each place, rows, length and keys would be
thousands. It is enqueued kernel by kernel: 900 kernels at 2 to 3 us are less than the 4 ms that reading the weights
takes the fastest card, and they are enqueued while the step's decode call runs. One context for calls of one row, one
for those of several.

Everything is created and run at load: what does not fit shows there, TensorRT-RTX compiles there, and no stream of a
running request ever waits for either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from autoglm_engine.errors import DeviceError
from autoglm_engine.runners.cuda.api import Cuda, Graph

from .engine_plan import BATCHED_PREFILL, DECODE, PREFILL, EnginePlan
from .shapes import Shape, TensorShapes

_log = logging.getLogger(__name__)
Addresses = Mapping[str, int]


def buckets_of(num_slots: int) -> list[int]:
    """1, 2, 4, ... and num_slots."""
    powers = [1 << power for power in range(num_slots.bit_length())]
    return [size for size in powers if size < num_slots] + [num_slots]


def graphs_of(shapes: TensorShapes) -> list[tuple[int, int]]:
    """(rows, keys) of each decode graph."""
    return [(rows, keys) for rows in buckets_of(shapes.num_slots) for keys in shapes.attention_lengths]


@dataclass(frozen=True, slots=True)
class CallFactory:
    """Makes calls that share one block of activations. `cleanup` lets go of them, of graphs before their contexts."""

    plan: EnginePlan
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

    def __init__(self, plan: EnginePlan, cuda: Cuda, context: Any) -> None:
        self._plan = plan
        self._cuda = cuda
        self._context = context
        self._shapes: dict[str, Shape] = {}

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Those that differ from what they were."""
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                raise DeviceError(f"TensorRT refuses {name} of the shape {shape}: {self._plan.said()}")
            self._shapes[name] = shape

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
    """One call for each (rows, keys). `addresses`: of all inputs and outputs, with slot 0 first."""

    def __init__(self, factory: CallFactory, shapes: TensorShapes, addresses: Addresses) -> None:
        self._factory = factory
        self._cuda = factory.cuda
        self._shapes = shapes
        self._buckets = buckets_of(shapes.num_slots)
        self._calls: dict[tuple[int, int], Call] = {}
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._captures = True
        for rows, keys in graphs_of(shapes):
            call = self._calls[rows, keys] = factory.create(DECODE)
            call.set_shapes(shapes.inputs(rows, 1, keys))
            call.set_addresses(addresses)

    def rows(self, highest_slot: int) -> int:
        """The fewest that have the slot."""
        return next(bucket for bucket in self._buckets if bucket > highest_slot)

    def prepare(self) -> None:
        """Run each call once, which a capture must follow, then capture it. The inputs on the device say that all rows
        are idle. Where a graph cannot be captured, that call and those after it are enqueued each time."""
        for shape, call in self._calls.items():
            call.enqueue()
            self._cuda.synchronize()
            if self._captures:
                self._capture(shape, call)

    def run(self, rows: int, num_positions: int) -> None:
        """Enqueue the call, which reads `num_positions` or more of each row."""
        shape = rows, self._shapes.keys(num_positions)
        if (graph := self._graphs.get(shape)) is not None:
            self._cuda.launch(graph)
        else:
            self._calls[shape].enqueue()

    def _capture(self, shape: tuple[int, int], call: Call) -> None:
        try:
            if not call.is_capturable:
                raise DeviceError("TensorRT says that the engine cannot be captured")
            self._graphs[shape] = self._factory.capture(call)
        except DeviceError as error:
            self._captures = False
            _log.warning("decode steps are enqueued kernel by kernel, without a CUDA graph: %s", error)


class PrefillCalls:
    """`addresses`: of the tensors that do not move."""

    def __init__(self, factory: CallFactory, shapes: TensorShapes, addresses: Addresses) -> None:
        self._shapes = shapes
        self._single, self._batched = factory.create(PREFILL), factory.create(BATCHED_PREFILL)
        for call in (self._single, self._batched):
            call.set_addresses(addresses)

    def run(self, num_rows: int, num_tokens: int, num_positions: int, addresses: Addresses) -> None:
        """Enqueue a call that reads `num_positions` or more of each row. `addresses`: of all other tensors."""
        call = self._single if num_rows == 1 else self._batched
        call.set_shapes(self._shapes.inputs(num_rows, num_tokens, self._shapes.keys(num_positions)))
        call.set_addresses(addresses)
        call.enqueue()


def warm_up_shapes(shapes: TensorShapes) -> Iterable[tuple[int, int, int]]:
    """(rows, tokens, keys) of prefill calls to run at load: all that prompts are padded to, with the fewest and the
    most positions, and one odd length, which a prompt has that ends at its slot's end."""
    ends = sorted({shapes.attention_lengths[0], shapes.attention_lengths[-1]})
    batches = [rows for rows in buckets_of(shapes.batched_rows) if rows > 1]
    singles = [*shapes.prefill_lengths, max(shapes.prefill_chunk - 1, 1)]
    for keys in ends:
        yield from ((1, tokens, keys) for tokens in singles)
        yield from (
            (rows, tokens, keys)
            for rows in batches
            for tokens in shapes.prefill_lengths
            if tokens <= shapes.batched_length
        )
