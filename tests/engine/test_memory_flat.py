"""Serving for longer takes no more memory: what is allocated after ten times as many steps is what was before."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from autoglm_engine.core import Logits, StepBatch
from autoglm_engine.runners.base import Deferred, Limits, Runner
from autoglm_engine.runners.native.library import TARGET_VARIABLE
from autoglm_engine.runners.native.runner import NativeRunner
from autoglm_export import compiler
from autoglm_export.native.lowering import write_program

from tests.runners.test_native import BASE, LIBRARY_NAME, manifest_of, random_weights
from tests.support.engine.busy_engine import BusyEngine

SPEC = dataclasses.replace(BASE, vocab_size=63)  # as many tokens as the text has
NUM_STEPS = 1_000
FEWER_STEPS = NUM_STEPS // 5  # in which a leak shows already
WARM_UP = 4  # times as many first: caches, tables and pools are then as full as they get
KILOBYTE = 1 << 10
# What caches that are full of other things may make. One object left behind by every fourth request would make more.
MAX_BLOCKS, MAX_BYTES, MAX_RESIDENT = 600, 48 * KILOBYTE, 1024 * KILOBYTE


class DrawnRunner:
    """Logits of a table, another row with every step; nothing is allocated."""

    def __init__(self, num_slots: int = 8, vocab_size: int = 63) -> None:
        self.limits = Limits(num_slots, 96, 16, vocab_size)
        self._table = np.random.default_rng(3).random((997 + num_slots, vocab_size), np.float32)
        self._next = 0

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self._forward, batch)

    def _forward(self, batch: StepBatch) -> Logits:
        self._next = (self._next + 7) % 997
        return self._table[self._next : self._next + sum(span.wants_logits for span in batch.spans)]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Growth:
    """`blocks`, `num_bytes`: more than before, of Python and numpy; `where`: the files that made the most of it."""

    blocks: int
    num_bytes: int
    where: str

    @property
    def is_flat(self) -> bool:
        return self.blocks < MAX_BLOCKS and self.num_bytes < MAX_BYTES


@contextmanager
def tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def allocations() -> tracemalloc.Snapshot:
    gc.collect()
    return tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])


def growth_between(num_steps: int, busy: BusyEngine) -> Growth:
    """Over nine times `num_steps`; before and after them nobody is being served."""
    with tracing():
        busy.run(WARM_UP * num_steps)
        before = allocations()
        busy.run(9 * num_steps)
        differences = allocations().compare_to(before, "filename")
    most = sorted(differences, key=lambda difference: -difference.size_diff)[:3]
    return Growth(
        sum(difference.count_diff for difference in differences),
        sum(difference.size_diff for difference in differences),
        "; ".join(str(difference) for difference in most),
    )


@pytest.mark.slow
def test_nothing_that_python_allocates_grows_with_steps(tmp_path: Path) -> None:
    busy = BusyEngine(DrawnRunner(), tmp_path)
    growth = growth_between(NUM_STEPS, busy)
    busy.close()
    assert growth.is_flat, growth
    assert busy.num_steps >= 10 * NUM_STEPS and busy.num_requests > 2 * NUM_STEPS
    assert all(busy.counters[f"cache_{name}"] for name in ("hits", "stores", "evictions", "expired")), busy.counters


Leak = Callable[[int], None]


def leak_a_key_a_step() -> Leak:
    kept: dict[str, bool] = {}
    return lambda step: kept.update({f"step {step}": True})


def leak_a_small_array_now_and_then() -> Leak:
    """As often as requests come."""
    kept: list[object] = []
    return lambda step: kept.append(np.zeros(8, np.float32)) if step % 3 == 0 else None


@pytest.mark.parametrize("make_leak", [leak_a_key_a_step, leak_a_small_array_now_and_then])
@pytest.mark.slow
def test_a_leak_shows_and_is_found_in_its_file(make_leak: Callable[[], Leak], tmp_path: Path) -> None:
    busy = BusyEngine(DrawnRunner(), tmp_path, each_step=make_leak())
    growth = growth_between(FEWER_STEPS, busy)
    busy.close()
    assert not growth.is_flat, growth
    assert Path(__file__).name in growth.where


@pytest.fixture(scope="module")
def native_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """The compiled decoder over a tiny model, with two threads."""
    folder = tmp_path_factory.mktemp("flat")
    library = compiler.build(compiler.DECODER_SOURCE, compiler.chosen_target())
    (folder / LIBRARY_NAME).write_bytes(library.read_bytes())
    write_program(SPEC, random_weights(SPEC), folder, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TARGET_VARIABLE, raising=False)
        runner = NativeRunner(folder, manifest_of(SPEC), num_threads=2)
    yield runner
    runner.close()


def resident_growth(busy: BusyEngine, num_steps: int) -> int:
    """Bytes more in memory after ten times as many steps, of all that this process allocates by whatever means."""
    process = psutil.Process()
    busy.run(num_steps)
    gc.collect()
    before = process.memory_info().rss
    busy.run(9 * num_steps)
    gc.collect()
    return int(process.memory_info().rss - before)


@pytest.mark.slow
def test_the_process_does_not_grow_with_steps_of_the_native_runner(native_runner: Runner, tmp_path: Path) -> None:
    busy = BusyEngine(native_runner, tmp_path)
    grown = resident_growth(busy, NUM_STEPS)
    busy.close()
    assert grown < MAX_RESIDENT, f"{grown / KILOBYTE:.0f} KiB more"


@pytest.mark.slow
def test_a_leak_shows_in_the_process(native_runner: Runner, tmp_path: Path) -> None:
    kept = list[mmap.mmap]()  # pages of their own: no allocator has any left over from earlier tests

    def leak(step: int) -> None:
        kept.append(mmap.mmap(-1, mmap.PAGESIZE))
        kept[-1][0] = 1

    busy = BusyEngine(native_runner, tmp_path, each_step=leak)
    assert resident_growth(busy, FEWER_STEPS) > MAX_RESIDENT
    busy.close()
