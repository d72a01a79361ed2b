"""The rule that names what limits a run, and what it says to change."""

from __future__ import annotations

import dataclasses

import pytest
from autoglm_cli.profile.advice import explain
from autoglm_cli.profile.bottleneck import Measurements, Resource, find_bottleneck
from hypothesis import given
from hypothesis import strategies as st

IDLE = Measurements(
    concurrency=4,
    cores=4.0,
    cpu_cores={"engine": 1.0, "client": 0.1},
    memory_bytes=100,
    memory_used=20.0,
    interface="eth0",
    network_bytes_per_second=10.0,
    interface_bytes_per_second=100.0,
    gpu="Card",
    gpu_utilisation=0.2,
    slots=8,
    slots_busy=4.0,
    waiting=0.0,
    blocked_share=0.0,
)
BLOCKED = {"waiting": 3.0, "blocked_share": 1.0, "slots_busy": 8.0, "queue_share": 0.6, "concurrency": 11}
UNSEEN = {"cores": None, "cpu_cores": {"client": 0.1}, "memory_bytes": None, "memory_used": None}


@pytest.mark.parametrize(
    ("changes", "bottleneck", "also", "words"),
    [
        ({}, Resource.NOTHING, (), ["did not ask enough", "--concurrency 16"]),
        (
            {"cpu_cores": {"engine": 3.2}},
            Resource.CPU,
            (),
            ["80% of 4 cores", "engine", "--precision int8", "tokens/s"],
        ),
        (
            {"cpu_cores": {"engine": 3.2}, "slots_busy": 1.0},
            Resource.CPU,
            (),
            ["1.0 of 8 slots busy, a larger --concurrency still"],
        ),
        ({"cpu_cores": {"engine": 3.2}, "slots_busy": 7.9}, Resource.CPU, (), ["more requests at once will not help"]),
        ({"cpu_cores": {"engine": 3.19}}, Resource.NOTHING, (), ["did not ask enough"]),
        (
            {"cpu_cores": {"engine": 3.9}, "longest_stage": "prefill"},
            Resource.CPU,
            (),
            ["prefix_reuse", "time to first token"],
        ),
        (
            {"cpu_cores": {"engine": 1.0, "others": 2.5}},
            Resource.CPU,
            (),
            ["2.50 of them by programs that are not the server"],
        ),
        (
            {"cpu_cores": {"engine": 3.0, "others": 0.4}},
            Resource.CPU,
            (),
            ["by engine and 0.40 by programs", "--precision int8"],
        ),
        ({"cpu_cores": {"engine": 1.0, "detokenizer": 2.5}}, Resource.CPU, (), ["max_events_per_second"]),
        ({"cpu_cores": {"engine": 0.5, "client": 3.0}}, Resource.CPU, (Resource.CLIENT,), ["load generator"]),
        ({"memory_used": 75.0}, Resource.MEMORY, (), ["--max-length", "--max-slots"]),
        ({"memory_used": 74.9}, Resource.NOTHING, (), []),
        ({"network_bytes_per_second": 90.0}, Resource.NETWORK, (), ["90% of eth0", "gzip"]),
        ({"network_bytes_per_second": 90.0, "is_loopback": True}, Resource.NOTHING, (), []),
        ({"network_bytes_per_second": 90.0, "interface_bytes_per_second": None}, Resource.NOTHING, (), []),
        ({"gpu_utilisation": 0.95}, Resource.GPU, (), ["Card", "fp8"]),
        (BLOCKED, Resource.SLOTS, (Resource.QUEUE,), ["3.0 requests wait for one of 8", "--max-slots", "at most 11"]),
        (
            {**BLOCKED, "cpu_cores": {"engine": 0.9}},
            Resource.SLOTS,
            (Resource.QUEUE,),
            ["if num_threads is 1, set it to 0 first"],
        ),
        ({**BLOCKED, "blocked_share": 0.49}, Resource.NOTHING, (), []),
        ({**BLOCKED, "cpu_cores": {"engine": 3.8}}, Resource.CPU, (Resource.QUEUE,), ["Also at its mark: queue"]),
        ({**BLOCKED, **UNSEEN}, Resource.QUEUE, (), ["60% of the requests' time", "max_queue", "deadline_ms"]),
        (
            {"slots": None, "slots_busy": None, "waiting": None, "blocked_share": None},
            Resource.NOTHING,
            (),
            ["4 at once"],
        ),
        ({"waiting": None, "blocked_share": None, "queue_share": 0.6}, Resource.QUEUE, (), ["requests wait"]),
        ({"cpu_cores": {"engine": 1.0, "client": 0.95}}, Resource.CLIENT, (), ["95% of the one core"]),
        (
            {**BLOCKED, "cpu_cores": {"engine": 1.0, "client": 0.95}},
            Resource.SLOTS,
            (Resource.QUEUE, Resource.CLIENT),
            [],
        ),
        # Two at their marks: the one that is further over it.
        (
            {"cpu_cores": {"engine": 3.9}, "memory_used": 76.0},
            Resource.CPU,
            (Resource.MEMORY,),
            ["Also at its mark: memory"],
        ),
        (
            {"cpu_cores": {"engine": 3.3}, "memory_used": 99.0},
            Resource.MEMORY,
            (Resource.CPU,),
            ["Also at its mark: CPU"],
        ),
        # A tie: by the order of the resources, and it says so.
        ({"cpu_cores": {"engine": 3.2}, "memory_used": 75.0}, Resource.MEMORY, (Resource.CPU,), ["As loaded: CPU"]),
        ({"cpu_cores": {"engine": 3.2}, "gpu_utilisation": 0.9}, Resource.GPU, (Resource.CPU,), ["As loaded: CPU"]),
    ],
)
def test_the_bottleneck_and_what_to_change(
    changes: dict[str, object], bottleneck: Resource, also: tuple[Resource, ...], words: list[str]
) -> None:
    measured = dataclasses.replace(IDLE, **changes)  # type: ignore[arg-type]
    verdict = find_bottleneck(measured)
    assert (verdict.bottleneck, verdict.also) == (bottleneck, also)
    text = explain(verdict, measured)
    assert [word for word in words if word not in text] == []
    assert 2 <= text.count(". ") + 1 <= 4
    assert "num_threads is" not in text or bottleneck in (Resource.SLOTS, Resource.NOTHING)


def test_what_cannot_be_seen_is_said_rather_than_guessed() -> None:
    measured = Measurements(concurrency=1, network_bytes_per_second=5e6, is_loopback=True)
    observed = {check.resource: check.observed for check in find_bottleneck(measured).checks}
    assert "no line to fill" in observed[Resource.NETWORK] and "5.00 MB/s" in observed[Resource.NETWORK]
    assert "cannot be seen from here" in observed[Resource.CPU]
    assert "none" in observed[Resource.GPU]
    unknown = dataclasses.replace(measured, is_loopback=False, interface="eth9")
    assert "eth9, whose speed is unknown" in find_bottleneck(unknown).checks[3].observed


shares = st.floats(0, 1)


@given(cpu=shares, memory=shares, network=shares, gpu=shares, blocked=shares)
def test_a_named_resource_is_at_its_mark_and_nothing_is_named_only_when_none_is(
    cpu: float, memory: float, network: float, gpu: float, blocked: float
) -> None:
    measured = dataclasses.replace(
        IDLE,
        cpu_cores={"engine": 4 * cpu},
        memory_used=100 * memory,
        network_bytes_per_second=100 * network,
        gpu_utilisation=gpu,
        blocked_share=blocked,
        waiting=float(blocked > 0),
    )
    verdict = find_bottleneck(measured)
    full = {check.resource for check in verdict.checks if check.saturated}
    named = {verdict.bottleneck, *verdict.also} - {Resource.NOTHING}
    assert named == full
    assert explain(verdict, measured)
