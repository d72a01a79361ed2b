"""The arithmetic behind the published figures."""

from __future__ import annotations

import math

import pytest
from autoglm_perf.baselines.analyzer import parse_profile
from autoglm_perf.load.measures import Goal, Percentiles, RequestTiming, summarise


def timing(started: float, first: float, finished: float, tokens: int, error: str | None = None) -> RequestTiming:
    gap = (finished - first) / max(1, tokens - 1)
    return RequestTiming(started, first, finished, tokens, (gap,) * (tokens - 1), error)


def test_percentiles_are_of_the_ordered_values_in_milliseconds() -> None:
    values = [index / 1000 for index in range(100, 0, -1)]
    assert Percentiles.of(values) == Percentiles(p50=51.0, p95=96.0, p99=100.0)


def test_percentiles_of_nothing_are_not_a_number() -> None:
    assert math.isnan(Percentiles.of([]).p50)


def test_rates_count_the_wall_time_of_the_whole_run_and_only_what_was_served() -> None:
    run = [timing(0.0, 0.5, 1.0, 11), timing(0.5, 1.0, 2.0, 11), timing(0.0, 0.1, 0.2, 0, error="unavailable")]
    figures = summarise("ours", 2, run, Goal())
    assert figures.seconds == 2.0
    assert figures.requests_per_second == pytest.approx(1.0)
    assert figures.output_tokens_per_second == pytest.approx(11.0)
    assert figures.num_errors == 1


@pytest.mark.parametrize(
    ("candidate", "good"),
    [
        (timing(0, 0.1, 0.6, 11), True),
        (timing(0, 3.0, 3.5, 11), False),  # the first token was late
        (timing(0, 0.1, 5.1, 11), False),  # 500 ms between tokens
        (timing(0, 0.1, 0.6, 11, error="x"), False),
    ],
)
def test_a_request_is_good_when_first_token_and_pace_are_in_time(candidate: RequestTiming, good: bool) -> None:
    assert Goal(time_to_first_token_ms=2000, inter_token_ms=100).met_by(candidate) is good


def test_a_perf_analyzer_profile_gives_one_timing_a_request() -> None:
    second = 10**9
    profile = {
        "experiments": [
            {"requests": [{"timestamp": second, "response_timestamps": [2 * second, 3 * second, 4 * second]}]}
        ]
    }
    (only,) = parse_profile(profile, max_tokens=5)
    assert (only.time_to_first_token, only.latency, only.num_tokens) == (1.0, 3.0, 5)
    assert only.token_gaps == (0.5,) * 4
