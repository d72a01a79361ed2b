"""What the experiments rest on: Zipf's law, Poisson arrivals, equality of answers, and figures of processes."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from autoglm_perf.experiments.system.service_targets import verdict
from autoglm_perf.load.arrivals import poisson_times
from autoglm_perf.load.load import Answered, Question, greedy
from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.zipf import zipf_ranks, zipf_weights
from autoglm_perf.suite.equality import AnswersDiffer, differing, first_answers, require_equal
from autoglm_perf.suite.experiment import Arm
from autoglm_perf.system.processes import (
    LOAD_GENERATOR,
    CpuUse,
    PeakMemory,
    busiest_threads,
    read_memory,
    run_queue_seconds,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 300), st.floats(0.1, 3.0))
def test_weights_follow_zipfs_law(count: int, exponent: float) -> None:
    weights = zipf_weights(count, exponent)
    assert sum(weights) == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(weights))
    assert weights[0] / weights[-1] == pytest.approx(count**exponent)


def test_ranks_are_drawn_by_their_weights_and_repeat_with_their_seed() -> None:
    ranks = zipf_ranks(200, 1.1, 50_000, seed=3)
    shares = {rank: count / 50_000 for rank, count in Counter(ranks).items()}
    assert set(shares) <= set(range(200))
    for rank, weight in enumerate(zipf_weights(200, 1.1)[:10]):
        assert shares[rank] == pytest.approx(weight, rel=0.1)
    assert zipf_ranks(200, 1.1, 50, seed=3) == ranks[:50] != zipf_ranks(200, 1.1, 50, seed=4)


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = list(islice(poisson_times(50.0, seed=1), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) >= 0 and mean == pytest.approx(1 / 50, rel=0.03)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(
        mean**2, rel=0.1
    )  # as exponential gaps have
    assert list(islice(poisson_times(50.0, seed=1), 9)) == times[:9] != list(islice(poisson_times(50.0, seed=2), 9))


def answered(prompt: str, text: str, error: str | None = None) -> Answered:
    return Answered(Question(prompt, greedy(4)), text, "exact", RequestTiming(0, 1, 2, 4, (), error))


def test_the_first_answer_that_did_not_fail_is_the_right_one() -> None:
    given_answers = [answered("a", "half", "lost"), answered("a", "one"), answered("a", "two"), answered("b", "three")]
    assert first_answers(given_answers) == {"a": "one", "b": "three"}


@pytest.mark.parametrize("wrong", ["on", "one ", "One", "", "o\u0308ne"])
def test_an_answer_that_differs_in_a_byte_fails_the_run(wrong: str) -> None:
    right = {"a": "one", "b": "\u00e9"}
    good = [answered("a", "one"), answered("b", "\u00e9")]
    assert require_equal(good, right) == 2
    assert differing([*good, answered("a", wrong)], right) == [answered("a", wrong)]
    with pytest.raises(AnswersDiffer, match=r"1 of 3 answers differ, the first one .cache_hit exact."):
        require_equal([*good, answered("a", wrong)], right)


def test_the_same_letters_in_other_bytes_differ() -> None:
    assert differing([answered("b", "e\u0301")], {"b": "\u00e9"})


def test_an_answer_to_an_unknown_prompt_cannot_be_right() -> None:
    with pytest.raises(KeyError):
        require_equal([answered("new", "one")], {"a": "one"})


@pytest.mark.slow
def test_memory_is_read_in_bytes_and_peaks_are_kept(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text(
        "00400000-7fff [rollup]\nRss:  20 kB\nPss:  10 kB\nPss_Dirty: 3 kB\nPss_Anon: 5 kB\nPss_Shmem: 1 kB\n"
    )
    found = read_memory(7, tmp_path)
    assert (found.resident, found.proportional, found.allocated) == (20_480, 10_240, 6_144)
    assert read_memory(8, tmp_path).proportional == 0
    before = read_memory(os.getpid()).proportional
    with PeakMemory({"me": os.getpid()}) as peak:
        held = mmap.mmap(-1, 64 << 20)  # not from the heap, which may have it already
        held.write(b"x" * (64 << 20))
        until = time.monotonic() + 60
        while peak.proportional < before + (32 << 20) and time.monotonic() < until:
            time.sleep(0.05)
        held.close()
        time.sleep(0.3)
    assert peak.proportional > read_memory(os.getpid()).proportional + (32 << 20)


def test_the_thread_that_computes_is_found() -> None:
    stop, ids = threading.Event(), list[int]()

    def work() -> None:
        ids.append(threading.get_native_id())
        while not stop.is_set():
            sum(range(1_000))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert busiest_threads(os.getpid(), 1) == ids
    finally:
        stop.set()
        thread.join()


def test_time_in_the_run_queue_is_that_of_the_threads_that_are_asked_for() -> None:
    me = os.getpid()
    threads = {int(folder.name) for folder in Path(f"/proc/{me}/task").iterdir()}
    assert run_queue_seconds([me]) > 0
    assert run_queue_seconds([me], threads) == 0
    assert run_queue_seconds([2**22 + 1]) == 0


def test_cpu_is_said_a_request_with_the_load_generators_share() -> None:
    use = CpuUse({"engine": 3.0, LOAD_GENERATOR: 1.0})
    assert (
        use.line(1_000) == "CPU a request in ms: engine 3.00, load generator 1.00; the load generator takes 25% of it."
    )


def test_service_targets_name_what_is_missed() -> None:
    def kind(rate: float, p95: float, errors: float) -> Arm:
        return Arm("kept", {"requests": (rate,), "latency p50": (1.0,), "latency p95": (p95,), "errors": (errors,)})

    assert verdict(kind(1_000, 200, 0.4)) == "kept: all three are met."
    assert verdict(kind(999, 201, 0.5)) == "kept: not met, p95 is 201 ms, 999 requests/s, 0.5% errors."
