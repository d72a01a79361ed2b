"""The engine driven without Triton, and the workloads of the experiments about batching."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.engine.sequence import Waiting
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from autoglm_perf.experiments.scheduling.static_batching import lengths, longest_of_batches
from autoglm_perf.experiments.scheduling.waiting import Gathering, poisson_requests
from autoglm_perf.in_process.driving import Arrival, Model

from tests.support.engine.engine_bench import TEXT, VOCAB
from tests.support.engine.fakes import FakeRunner


def ask(name: str, prompt: list[int], max_tokens: int) -> Request:
    return Request(name, np.array(prompt, np.int32), SamplingOptions(max_tokens=max_tokens, ignore_eos=True))


@pytest.mark.slow
def test_every_request_is_served_in_its_time() -> None:
    runner = FakeRunner(Limits(4, 64, 8, VOCAB))
    arrivals = [Arrival(0.4 * i, ask(f"{i}", [1, 2, 3] * 8 + [i], 3)) for i in range(4)]
    outcome = Model(runner, TEXT).drive(arrivals, plain_settings(), num_slots=2)
    assert max(span.slot for batch in runner.batches for span in batch.spans) < 2
    assert 0 < outcome.requests_per_second < 4 / 1.2
    assert 0 < outcome.p50_ms <= outcome.p95_ms


def test_requests_of_a_seed_are_the_same_for_every_policy() -> None:
    first, again, other = (
        [(arrival.at, arrival.request.prompt_ids.tolist()) for arrival in poisson_requests(9.0, 5, seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert [at for at, _ in first] == sorted(at for at, _ in first)


def test_lengths_stay_in_their_range() -> None:
    for is_skewed in (False, True):
        found = lengths(2_000, is_skewed=is_skewed)
        assert (min(found), max(found)) in {(8, 256), (8, 255), (9, 256)}
        assert (sum(found) / 2_000 < 80) == is_skewed
        assert found == lengths(2_000, is_skewed=is_skewed)


def test_a_padded_batch_computes_its_longest_answer() -> None:
    assert longest_of_batches([3, 9, 5, 2, 7], 2) == [9, 9, 5, 5, 7]


def test_gathering_waits_for_company_or_time() -> None:
    policy = Gathering(2, wait_ms=10)
    queue = deque([Waiting(ask("a", [1], 1), 5.0, 5.0)])
    assert policy.choose(queue, [], 5.009) is None
    assert policy.choose(queue, [], 5.011) == 0
    assert policy.choose(queue, [], 5.009) is None
    queue.append(queue[0])
    assert [policy.choose(queue, [], 5.0) for _ in range(2)] == [0, 0]
