"""CudaBindings and all that stands on it against a real driver: cuda-bindings and numpy are enough, there is no
TensorRT.

    PYTHONPATH=model_repository/engine/1 python3 tests/gpu/real_cuda.py

Says for each part that it holds, or what went wrong, then microseconds a call; ends with 1 where a part does not hold.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from autoglm_engine.core import Adjustments, Span
from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.runners.cuda.api import ALIGNMENT, Cuda
from autoglm_engine.runners.cuda.bindings import CudaBindings
from autoglm_engine.runners.cuda.memory import DeviceMemory, free_all
from autoglm_engine.runners.tensorrt.kv_cache import KeyValueCache
from autoglm_engine.runners.tensorrt.logit_state import LogitState
from autoglm_engine.runners.tensorrt.shapes import TensorShapes

Part = Callable[[Cuda, DeviceMemory], None]
SIZE = 1 << 20
# GLM-4's rows of logits and heads; a cache of few positions, for what counts are the pitches.
SHAPES = TensorShapes(
    num_slots=16,
    num_layers=2,
    num_kv_heads=2,
    cache_length=1024,
    attention_lengths=(256, 1024),
    prefill_lengths=(16, 64),
    batched_rows=8,
    batched_length=16,
    head_size=128,
    cache_dtype="bfloat16",
    prefill_chunk=64,
    vocab_size=151_552,
    num_candidates=64,
)


def memory_is_aligned_and_zeroed(cuda: Cuda, memory: DeviceMemory) -> None:
    for size in (1, 255, 257, SIZE):
        assert memory.allocate("test", size) % ALIGNMENT == 0
    assert not fetched(cuda, memory, memory.allocate("test", SIZE), SIZE).any()


def pinned_memory_goes_there_and_back(cuda: Cuda, memory: DeviceMemory) -> None:
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)
    host[:] = np.random.default_rng(1).integers(0, 256, SIZE)
    cuda.copy(device, int(host.ctypes.data), SIZE)
    np.testing.assert_array_equal(fetched(cuda, memory, device, SIZE), host)


def rows_are_copied_by_their_pitches(cuda: Cuda, memory: DeviceMemory) -> None:
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)
    host[:] = np.arange(SIZE) % 251
    cuda.copy_rows(device, 1024, int(host.ctypes.data) + 4, 512, 12, 64)
    found = fetched(cuda, memory, device, SIZE).reshape(-1, 1024)
    np.testing.assert_array_equal(found[:64, :12], host.reshape(-1, 512)[:64, 4:16])
    assert not found[:64, 12:].any() and not found[64:].any()


def an_event_that_was_waited_for_has_passed(cuda: Cuda, memory: DeviceMemory) -> None:
    host, back, device = memory.pinned(SIZE), memory.pinned(SIZE), memory.allocate("test", SIZE)
    event = memory.event()
    cuda.wait(event)  # of no recording: at once
    for number in range(50):
        host[:] = number
        cuda.copy(device, int(host.ctypes.data), SIZE)
        cuda.copy(int(back.ctypes.data), device, SIZE)
        cuda.record(event)
        cuda.wait(event)
        assert (back == number).all()


def a_captured_copy_runs_when_it_is_launched(cuda: Cuda, memory: DeviceMemory) -> None:
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)
    host[:] = 3
    graph = cuda.capture(lambda: cuda.copy(device, int(host.ctypes.data), SIZE))
    assert not fetched(cuda, memory, device, SIZE).any(), "a capture runs nothing"
    for number in (5, 9):
        cuda.synchronize()
        host[:] = number
        cuda.launch(graph)
        assert (fetched(cuda, memory, device, SIZE) == number).all()
    cuda.destroy_graph(graph)


def a_capture_that_fails_is_abandoned(cuda: Cuda, memory: DeviceMemory) -> None:
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)

    def fails() -> None:
        cuda.copy(device, int(host.ctypes.data), SIZE)
        raise DeviceError("on purpose")

    try:
        cuda.capture(fails)
    except DeviceError as error:
        assert str(error) == "on purpose"
    else:
        raise AssertionError("the capture did not fail")
    forbidden_is_told(cuda)
    host[:] = 7
    cuda.copy(device, int(host.ctypes.data), SIZE)
    assert (fetched(cuda, memory, device, SIZE) == 7).all(), "the stream runs again"


def forbidden_is_told(cuda: Cuda) -> None:
    """Waiting for a stream that is being captured breaks the capture, and must be an error of ours."""
    try:
        cuda.capture(cuda.synchronize)
    except DeviceError:
        return
    raise AssertionError("a wait inside a capture was not refused")


def another_thread_copies_during_a_capture(cuda: Cuda, memory: DeviceMemory) -> None:
    """Thread-local captures leave others alone: a second runner in the process may allocate and wait."""
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)
    failures: list[str] = []

    def other() -> None:
        try:
            with ExitStack() as cleanup:
                second = CudaBindings()
                cleanup.callback(second.close)
                parts = DeviceMemory(second, cleanup)
                place = parts.allocate("test", SIZE)
                assert not fetched(second, parts, place, SIZE).any()
        except Exception as error:
            failures.append(str(error))

    def captured() -> None:
        cuda.copy(device, int(host.ctypes.data), SIZE)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    cuda.destroy_graph(cuda.capture(captured))
    assert not failures, failures[0]


def a_second_thread_may_call(cuda: Cuda, memory: DeviceMemory) -> None:
    host, device = memory.pinned(SIZE), memory.allocate("test", SIZE)
    host[:] = 11
    thread = threading.Thread(target=lambda: cuda.copy(device, int(host.ctypes.data), SIZE))
    thread.start()
    thread.join()
    assert (fetched(cuda, memory, device, SIZE) == 11).all()


def too_much_memory_is_told_and_harms_nothing(cuda: Cuda, memory: DeviceMemory) -> None:
    try:
        cuda.allocate(1 << 50)
    except DeviceError as error:
        assert error.is_out_of_memory
    else:
        raise AssertionError("a petabyte was allocated")
    assert memory.allocate("test", SIZE)


def prefixes_are_copied_from_slot_to_slot(cuda: Cuda, memory: DeviceMemory) -> None:
    cache, size = KeyValueCache(cuda, memory, SHAPES), SHAPES.bytes_per_slot
    host = memory.pinned(size)
    host[:] = np.random.default_rng(2).integers(0, 256, size)
    cuda.copy(cache.addresses(3)["past_key_1"], int(host.ctypes.data), size)
    cache.copy_prefix(3, 15, 100)
    shape = (SHAPES.num_kv_heads, SHAPES.cache_length, -1)
    found = fetched(cuda, memory, cache.addresses(15)["past_key_1"], size).reshape(shape)
    np.testing.assert_array_equal(found[:, :100], host.reshape(shape)[:, :100])
    assert not found[:, 100:].any()


def logits_are_adjusted_row_by_row(cuda: Cuda, memory: DeviceMemory) -> None:
    state, rng = LogitState(cuda, memory, SHAPES), np.random.default_rng(3)
    expected = {"logit_factor": np.ones((16, 151_552), np.float32), "logit_offset": np.zeros((16, 151_552), np.float32)}
    for count in (5, 3000, 1, 40):
        for slot in (0, 7, 15):
            ids = rng.choice(SHAPES.vocab_size, count, replace=False).astype(np.int32)
            factors, offsets = rng.random((2, count)).astype(np.float32)
            is_reset = count != 1
            told = Adjustments(is_reset, ids, factors, offsets)
            state.apply([Span(slot, 0, np.zeros(1, np.int32), True, told)])
            if is_reset:
                expected["logit_factor"][slot], expected["logit_offset"][slot] = 1, 0
            expected["logit_factor"][slot, ids], expected["logit_offset"][slot, ids] = factors, offsets
    for name, table in expected.items():
        found = fetched(cuda, memory, state.addresses[name], table.nbytes).view(np.float32).reshape(table.shape)
        np.testing.assert_array_equal(found, table)


def fetched(cuda: Cuda, memory: DeviceMemory, address: int, size: int) -> Any:
    host = memory.pinned(size)
    cuda.copy(int(host.ctypes.data), address, size)
    cuda.synchronize()
    return host[:size]


PARTS: tuple[Part, ...] = (
    memory_is_aligned_and_zeroed,
    pinned_memory_goes_there_and_back,
    rows_are_copied_by_their_pitches,
    an_event_that_was_waited_for_has_passed,
    a_captured_copy_runs_when_it_is_launched,
    a_capture_that_fails_is_abandoned,
    another_thread_copies_during_a_capture,
    a_second_thread_may_call,
    too_much_memory_is_told_and_harms_nothing,
    prefixes_are_copied_from_slot_to_slot,
    logits_are_adjusted_row_by_row,
)


def held(part: Part, new: Callable[[], Cuda]) -> str:
    """Empty where the part holds, else what went wrong, on one line."""
    cleanup = ExitStack()
    try:
        cuda = new()
    except ArtifactError as error:
        return str(error)
    cleanup.callback(cuda.close)
    try:
        part(cuda, DeviceMemory(cuda, cleanup))
    except (AssertionError, DeviceError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        free_all(cuda, cleanup)
    return ""


def microseconds(cuda: Cuda, count: int = 2000) -> dict[str, float]:
    """Of calls that a step makes, as the host spends them."""
    with ExitStack() as cleanup:
        memory = DeviceMemory(cuda, cleanup)
        host, device, event = memory.pinned(SIZE), memory.allocate("test", SIZE), memory.event()
        graph = cuda.capture(lambda: cuda.copy(device, int(host.ctypes.data), 4))
        cleanup.callback(cuda.destroy_graph, graph)
        cleanup.callback(cuda.synchronize)
        calls: dict[str, Callable[[], None]] = {
            "copy of 4 bytes": lambda: cuda.copy(device, int(host.ctypes.data), 4),
            "copy of 2 rows of 4 bytes": lambda: cuda.copy_rows(device, 1024, int(host.ctypes.data), 512, 4, 2),
            "record": lambda: cuda.record(event),
            "launch of a graph": lambda: cuda.launch(graph),
            "record and wait": lambda: (cuda.record(event), cuda.wait(event))[0],
        }
        return {name: _microseconds(cuda, call, count) for name, call in calls.items()}


def _microseconds(cuda: Cuda, call: Callable[[], None], count: int) -> float:
    cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - started) / count


def main() -> int:
    try:
        cuda = CudaBindings()
    except ArtifactError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{cuda.device}; {cuda.free_memory() / 1e9:.1f} GB free")
    failures = 0
    for part in PARTS:
        wrong = held(part, CudaBindings)
        failures += bool(wrong)
        print(f"{'NO ' if wrong else 'yes'} {part.__name__.replace('_', ' ')}{': ' + wrong if wrong else ''}")
    for name, value in microseconds(cuda).items():
        print(f"{value:8.2f} us  {name}")
    cuda.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
