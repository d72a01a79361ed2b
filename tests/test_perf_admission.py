"""The workloads of the admission measurements, and the engine driven without Triton."""

from __future__ import annotations

from collections import deque

from autoglm_engine.runner import Limits
from autoglm_engine.sequence import Waiting
from autoglm_perf.admission import EXPERIMENTS, FIFO, Gathering, ask, many_lengths, padded, poisson, shared_prefixes
from autoglm_perf.driving import Arrival, Model
from engine_bench import TEXT, VOCAB
from fakes import FakeRunner


def test_every_request_is_served_in_its_time() -> None:
    runner = FakeRunner(Limits(4, 64, 8, VOCAB))
    arrivals = [Arrival(0.02 * i, ask(f"{i}", [1, 2, 3] * 8 + [i], 3)) for i in range(4)]
    outcome = Model(runner, TEXT).drive(arrivals, FIFO.settings, num_slots=2)
    assert max(span.slot for batch in runner.batches for span in batch.spans) < 2
    assert 0 < outcome.requests_per_second < 4 / 0.06
    assert outcome.cached_share == 3 * 24 / 100  # each but the first starts from one before it
    assert 0 < outcome.p50_ms <= outcome.p95_ms


def test_workloads_are_the_same_for_every_policy_of_a_round_and_differ_between_rounds() -> None:
    for make in (shared_prefixes(2, 20, 5), many_lengths(5, is_skewed=True), poisson(9.0, 5)):
        prompts = [[arrival.request.prompt_ids.tolist() for arrival in make(seed)] for seed in (1, 1, 2)]
        assert prompts[0] == prompts[1] != prompts[2]


def test_lengths_stay_in_their_range() -> None:
    for is_skewed in (False, True):
        lengths = [a.request.sampling.max_tokens for a in many_lengths(2_000, is_skewed=is_skewed)(0)]
        assert (min(lengths), max(lengths)) in {(8, 256), (8, 255), (9, 256)}
        assert (sum(lengths) / 2_000 < 80) == is_skewed


def test_a_padded_batch_computes_its_longest_answer() -> None:
    arrivals = [Arrival(0.0, ask(f"{i}", [1], tokens)) for i, tokens in enumerate((3, 9, 5, 2, 7))]
    assert [a.request.sampling.max_tokens for a in padded(arrivals, 2)] == [9, 9, 5, 5, 7]


def test_gathering_waits_for_company_or_time() -> None:
    policy = Gathering(2, wait_ms=10)
    queue = deque([Waiting(ask("a", [1], 1), 5.0, 5.0)])
    assert policy.choose(queue, [], 5.009) is None
    assert policy.choose(queue, [], 5.011) == 0
    assert policy.choose(queue, [], 5.009) is None
    queue.append(queue[0])
    assert [policy.choose(queue, [], 5.0) for _ in range(2)] == [0, 0]


def test_the_first_variant_is_what_others_are_compared_with() -> None:
    assert all(experiment.variants[0] is FIFO for experiment in EXPERIMENTS.values())
