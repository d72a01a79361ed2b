"""The small inputs of a step's calls, written into pinned memory and copied to the device at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .core import Span
from .cuda import Cuda
from .device_memory import DeviceMemory
from .step_buffers import Format, MirroredBlock
from .tensor_shapes import TensorShapes


class StepInputs:
    """`turn`: which of the two copies in pinned memory. Prefill call i of a step has inputs of its own."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._spare_position = shapes.cache_length - 1
        self._block = MirroredBlock(
            cuda,
            memory,
            decode=_formats(shapes.num_slots, 1),
            prefill=_formats(1, shapes.prefill_chunk),
            num_prefill=shapes.num_slots,
        )
        self._key_positions = _uploaded(cuda, memory, np.arange(shapes.cache_length, dtype=np.int32))

    @property
    def decode_addresses(self) -> dict[str, int]:
        return self._block.addresses(self._block.decode) | self._shared

    def prefill_addresses(self, call: int) -> dict[str, int]:
        return self._block.addresses(self._block.prefill[call]) | self._shared

    @property
    def _shared(self) -> dict[str, int]:
        """A call that reads fewer positions reads the begin of them."""
        return {"key_positions": self._key_positions}

    def stage_idle(self, turn: int, bucket: int) -> None:
        """No row is of use to anybody: each writes to the position that is never read."""
        views = self._block.decode_views(turn)
        views["token_ids"][:bucket] = 0
        views["position_ids"][:bucket] = 0
        views["write_indices"][:bucket] = self._spare_position
        views["inverse_temperature"][:bucket] = 1

    def stage_decode(
        self, turn: int, bucket: int, spans: Sequence[Span], inverse_temperatures: npt.NDArray[np.float32]
    ) -> None:
        """Spans of one token, on idle rows. `inverse_temperatures`: of all slots."""
        self.stage_idle(turn, bucket)
        views = self._block.decode_views(turn)
        slots = np.array([span.slot for span in spans], np.intp)
        starts = np.array([span.start for span in spans], np.int32)
        views["token_ids"][slots, 0] = [span.token_ids[0] for span in spans]
        views["position_ids"][slots, 0] = starts
        views["write_indices"][slots] = starts
        views["inverse_temperature"][slots, 0] = inverse_temperatures[slots]

    def stage_prefill(self, turn: int, call: int, span: Span, inverse_temperature: float) -> None:
        """A tensor that is shorter than its cell is the begin of it."""
        views = self._block.prefill_views(turn, call)
        length = len(span.token_ids)
        views["token_ids"][0, :length] = span.token_ids
        views["position_ids"][0, :length] = np.arange(span.start, span.start + length)
        views["write_indices"][0] = span.start
        views["logit_indices"][0] = length - 1
        views["inverse_temperature"][0] = inverse_temperature

    def upload(self, turn: int, *, has_decode: bool, num_prefill: int) -> None:
        """Enqueue the copy."""
        self._block.upload(turn, has_decode, num_prefill)


def _uploaded(cuda: Cuda, memory: DeviceMemory, values: npt.NDArray[np.int32]) -> int:
    """The address on the device of a copy of `values`."""
    address, host = memory.allocate("step", values.nbytes), memory.pinned(values.nbytes)
    host[: values.nbytes] = values.view(np.uint8)
    cuda.copy(address, int(host.ctypes.data), values.nbytes)
    return address


def _formats(rows: int, tokens: int) -> list[Format]:
    return [
        ("token_ids", np.int32, (rows, tokens)),
        ("position_ids", np.int32, (rows, tokens)),
        ("write_indices", np.int32, (rows,)),
        ("logit_indices", np.int32, (rows, 1)),  # stays 0 for decode
        ("inverse_temperature", np.float32, (rows, 1)),
    ]
