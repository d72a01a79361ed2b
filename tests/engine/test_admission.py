"""Who is admitted next, as tables; and what no policy may change: every answer, once, after a bounded wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from autoglm_engine.core import Request
from autoglm_engine.engine.admission import AdmissionPolicy, Fifo, Static, make_policy
from autoglm_engine.engine.admission_features import FeaturePolicy
from autoglm_engine.engine.prefix_index import BLOCK
from autoglm_engine.engine.priorities import ByPriority
from autoglm_engine.engine.scheduler import Scheduler, StepPlan
from autoglm_engine.engine.sequence import Sequence, Waiting
from autoglm_engine.engine.slots import Allocation, SlotTable
from autoglm_engine.guided.grammar import GuideState
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import POLICIES, EngineSettings, plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_scheduler import make_sequence
from tests.support.engine.engine_bench import END, VOCAB, Bench
from tests.support.engine.fakes import answers, expected_greedy, request

NUM_SLOTS, LENGTH = 2, 12 * BLOCK
FEATURES = plain_settings(admission="features")


def path(*values: int, rest: int = 1) -> list[int]:
    """A prompt of whole blocks of one value each, and a rest of its own."""
    return np.repeat([*values, 50 + values[0]], [BLOCK] * len(values) + [rest]).tolist()  # type: ignore[no-any-return]


@dataclass
class LateGuide:
    """Takes a while to compile. `make_sequence` needs none."""

    is_ready: bool = False
    failure: None = None

    def start(self) -> None: ...

    def begin(self) -> GuideState:
        raise NotImplementedError


@dataclass
class Door:
    """A scheduler with one policy, and the requests in front of it."""

    policy: EngineSettings
    num_slots: int = NUM_SLOTS
    budget: int = 256
    now: float = 100.0
    admitted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        slots = SlotTable(self.num_slots, LENGTH, prefix_reuse=self.policy.prefix_reuse)
        limits = Limits(self.num_slots, LENGTH, 4 * BLOCK, 100)
        self.scheduler = Scheduler(limits, slots, self.budget, make_policy(self.policy, slots))

    def queue(self, *requests: Request) -> None:
        self.scheduler.waiting.extend(Waiting(one, one.arrival or self.now, self.now) for one in requests)

    def step(self) -> list[str]:
        """The names of those admitted. All that was planned is computed; nobody takes a token."""

        def admit(waiting: Waiting, allocation: Allocation) -> Sequence:
            return make_sequence(self.scheduler, waiting, allocation)

        plan: StepPlan = self.scheduler.plan(admit, self.now)
        self.scheduler.computed(plan)
        names = [sequence.request.id for sequence in plan.admitted]
        self.admitted += names
        return names

    def serve(self, name: str) -> None:
        """Run it to its end, alone, from the queue's head."""
        assert self.step() == [name]
        self.end(name)

    def end(self, *names: str) -> None:
        for sequence in [s for s in self.scheduler.running if s.request.id in names]:
            for _ in range(10):
                if sequence.num_missing:
                    self.step()
            self.scheduler.finish(sequence)


@pytest.mark.parametrize(
    ("running", "waiting", "chosen"),
    [
        pytest.param([], [("a", path(1), 0, ""), ("b", path(2), 0, "")], "a", id="nothing in common: the oldest"),
        pytest.param(
            [("r", path(1, 2, 3), "")], [("a", path(4, 4, 4), 0, ""), ("b", path(1, 2, 3), 0, "")], "b", id="same path"
        ),
        pytest.param(
            [("r", path(1, 2, 3, 4), "")],
            [("a", path(1, 5, 5, 5), 0, ""), ("b", path(1, 2, 5, 5), 0, ""), ("c", path(1, 2, 3, 5), 9, "")],
            "b",
            id="a burst goes before a somewhat longer path",
        ),
        pytest.param([("r", path(1), "u")], [("a", path(4), 0, "v"), ("b", path(5), 0, "u")], "b", id="same user"),
        pytest.param([("r", path(1), "")], [("a", path(4), 0, "v"), ("b", path(5), 0, "")], "a", id="no name, no user"),
        pytest.param(
            [("r", path(1, 1), "u")],
            [("a", path(2, 2), 0, "u"), ("b", path(1, 1), 0, "")],
            "b",
            id="nearly all of a prompt weighs more than the user",
        ),
        pytest.param(
            [("r", path(1, 1), "u")],
            [("a", path(2, 2), 0, "u"), ("b", path(1, 2), 0, "")],
            "a",
            id="half of a prompt weighs less than the user",
        ),
        pytest.param(
            [], [("a", path(1), 0, ""), ("b", path(2), 0.05, ""), ("c", path(3), 0.0501, "")], "a", id="ties in order"
        ),
    ],
)
def test_features(
    running: list[tuple[str, list[int], str]], waiting: list[tuple[str, list[int], float, str]], chosen: str
) -> None:
    door = Door(FEATURES, num_slots=len(running) + 1)
    door.queue(*(request(name, prompt, user=user) for name, prompt, user in running))
    door.step()
    door.queue(*(request(n, prompt, arrival=door.now + after, user=user) for n, prompt, after, user in waiting))
    assert door.step() == [chosen]


def test_a_retained_beginning_is_used_before_it_is_lost() -> None:
    door = Door(FEATURES, num_slots=1)
    door.queue(*(request(f"{name}{i}", path(i, i, rest=2 + ord(name) % 5)) for name in "abc" for i in (1, 2, 3)))
    while door.scheduler.waiting:
        (name,) = door.step()
        door.end(name)
    assert door.admitted == ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


SECRET, GUESSES = path(1, 2, 3, 4), [path(5, 5, 5, 5), path(1, 2, 3, 4), path(1, 2, 6, 6), path(7, 7, 7, 7)]


@pytest.mark.parametrize("is_running", [True, False])
@pytest.mark.parametrize("asked", [SECRET, path(8, 8, 8, 8)], ids=["guessed", "not guessed"])
def test_the_order_tells_a_tenant_nothing_of_what_others_asked(asked: list[int], is_running: bool) -> None:
    door = Door(FEATURES)
    door.queue(replace(request("other", asked, user="u"), tenant="other"))
    door.step()
    if not is_running:
        door.end("other")
    users = ["v", "u", "", "u"]
    for name, prompt, user in zip("abcd", GUESSES, users, strict=True):
        door.queue(replace(request(name, prompt, user=user), tenant="spy"))
    admitted = []
    while door.scheduler.waiting:
        admitted += (names := door.step())
        door.end(*names)
    assert admitted == ["a", "b", "c", "d"]


def test_a_tenants_own_beginnings_still_come_first() -> None:
    door = Door(FEATURES)
    door.queue(replace(request("r", SECRET), tenant="own"))
    door.step()
    door.queue(*(replace(request(name, prompt), tenant="own") for name, prompt in zip("ab", GUESSES, strict=False)))
    assert door.step() == ["b"]


def test_without_prefix_reuse_a_path_counts_for_nothing() -> None:
    door = Door(replace(FEATURES, prefix_reuse=False), num_slots=2)
    door.queue(request("r", path(1, 1)))
    door.step()
    door.queue(request("a", path(2, 2)), request("b", path(1, 1)))
    assert door.step() == ["a"]


def test_only_the_window_is_looked_at() -> None:
    door = Door(replace(FEATURES, admission_window=2))
    door.queue(request("r", path(1, 1)))
    door.step()
    door.queue(*(request(name, path(2, 2)) for name in "ab"), request("c", path(1, 1)))
    assert door.step() == ["a"]


def test_whoever_was_passed_over_often_goes_first() -> None:
    door = Door(replace(FEATURES, admission_max_passed=3), num_slots=1)
    door.queue(request("r", path(1, 1)))
    door.serve("r")
    door.queue(request("old", path(2, 2)), *(request(f"n{i}", path(1, 1, rest=2 + i)) for i in range(5)))
    for expected in ("n0", "n1", "n2", "old", "n3"):
        door.serve(expected)


def test_whoever_was_passed_over_often_goes_first_also_when_an_older_one_has_just_become_ready() -> None:
    guide = LateGuide()
    door = Door(replace(FEATURES, admission_max_passed=3), num_slots=1)
    door.queue(request("r", path(1, 1)))
    door.serve("r")
    door.queue(replace(request("guided", path(3, 3)), guide=guide), request("old", path(2, 2)))
    door.queue(*(request(f"n{i}", path(1, 1, rest=2 + i)) for i in range(8)))
    for expected in ("n0", "n1", "n2"):
        door.serve(expected)
    guide.is_ready = True
    for expected in ("old", "guided", "n3"):
        door.serve(expected)


def test_whoever_was_passed_over_long_ago_goes_first() -> None:
    door = Door(replace(FEATURES, admission_max_delay_ms=500), num_slots=1)
    door.queue(request("r", path(1, 1)))
    door.serve("r")
    door.queue(request("old", path(2, 2)), *(request(f"n{i}", path(1, 1, rest=2 + i)) for i in range(5)))
    door.serve("n0")  # the first time that it is passed over
    door.now += 0.499
    door.serve("n1")
    door.now += 0.001
    door.serve("old")


def test_static_batches_are_closed_until_they_end() -> None:
    door = Door(plain_settings(admission="static", static_size=2), num_slots=4)
    door.queue(*(request(f"r{i}", path(i)) for i in range(5)))
    assert door.step() == ["r0", "r1"]
    door.end("r0")
    assert door.step() == []
    door.end("r1")
    assert door.step() == ["r2", "r3"]
    door.end("r2", "r3")
    assert door.step() == []
    door.queue(request("r5", path(5)))
    assert door.step() == ["r4", "r5"]


def test_a_static_batch_is_closed_by_time() -> None:
    door = Door(plain_settings(admission="static", static_window_ms=50), num_slots=4)
    door.queue(request("r0", path(0)))
    assert door.step() == []
    door.now += 0.049
    door.queue(request("r1", path(1)))
    assert door.step() == []
    door.now += 0.001
    assert door.step() == ["r0", "r1"]
    door.queue(request("r2", path(2)))
    assert door.step() == []


@pytest.mark.parametrize(("name", "kind"), [("fifo", Fifo), ("features", FeaturePolicy), ("static", Static)])
def test_settings_name_the_policy(name: str, kind: type[AdmissionPolicy]) -> None:
    made = make_policy(plain_settings(admission=name), SlotTable(1, 8))
    assert isinstance(made.within if isinstance(made, ByPriority) else made, kind)


# ---- what holds for any policy

SETTINGS = st.builds(
    EngineSettings,
    admission=st.sampled_from(POLICIES),
    admission_window=st.integers(1, 8),
    admission_max_passed=st.integers(0, 5),
    admission_max_delay_ms=st.sampled_from([0.0, 30.0, 1000.0]),
    admission_burst_ms=st.sampled_from([0.0, 50.0]),
    static_size=st.integers(0, 4),
    prefix_reuse=st.booleans(),
    token_budget=st.integers(1, 60),
)
ASKED = st.builds(
    lambda first, rest, user, tokens: ([first] * (BLOCK + 2) + rest, user, tokens),
    st.integers(0, 2),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
    st.sampled_from(["", "u", "v"]),
    st.integers(1, 6),
)


def serve_all(bench: Bench, asked: list[tuple[list[int], str, int]], gap: int) -> None:
    """Submit one request in every `gap` steps, and serve them to the end."""
    for i, (prompt, user, tokens) in enumerate(asked):
        bench.engine.submit(request(f"q{i}", prompt, user=user, max_tokens=tokens))
        bench.step(gap)
    while bench.engine.has_work:
        bench.clock.now += 0.01 * bench.engine.is_gathering
        bench.step()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.lists(ASKED, min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 3))
def test_every_request_is_answered_once_and_as_if_alone(
    chosen: EngineSettings, asked: list[tuple[list[int], str, int]], num_slots: int, gap: int
) -> None:
    bench = Bench(0, limits=Limits(num_slots, 64, 8, VOCAB), settings=chosen)
    serve_all(bench, asked, gap)
    bench.assert_idle()
    found = answers(bench.events)
    assert sum(event.is_last for event in bench.events) == len(found) == len(asked)
    for i, (prompt, _, tokens) in enumerate(asked):
        assert found[f"q{i}"].token_ids == expected_greedy(prompt, tokens, VOCAB, frozenset([END]))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(2, 64),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "u", "v"]), st.integers(0, 1)), min_size=8, max_size=30),
    st.integers(1, 3),
)
def test_few_that_came_later_are_admitted_before_anyone(
    max_passed: int, window: int, asked: list[tuple[int, str, int]], num_slots: int
) -> None:
    chosen = replace(FEATURES, admission_max_passed=max_passed, admission_window=window)
    door = Door(chosen, num_slots=num_slots)
    for i, (first, user, steps) in enumerate(asked):
        door.queue(request(f"{i}", path(first, first), user=user))
        for _ in range(steps):
            turn(door)
    for _ in range(4 * len(asked)):
        turn(door)
    order = [int(name) for name in door.admitted]
    assert sorted(order) == list(range(len(asked)))
    for place, number in enumerate(order):
        assert sum(later > number for later in order[:place]) <= max_passed


def turn(door: Door) -> None:
    """A step, and the end of the sequence that ran longest, once its prompt is computed."""
    door.step()
    if door.scheduler.running and not door.scheduler.running[0].num_missing:
        door.scheduler.finish(door.scheduler.running[0])


@given(st.lists(ASKED, min_size=1, max_size=20), st.integers(1, 4))
def test_fifo_is_the_order_of_arrival(asked: list[tuple[list[int], str, int]], num_slots: int) -> None:
    door = Door(plain_settings(), num_slots=num_slots)
    door.queue(*(request(f"{i}", prompt, user=user) for i, (prompt, user, _) in enumerate(asked)))
    while door.scheduler.waiting:
        turn(door)
    assert door.admitted == [f"{i}" for i in range(len(asked))]


def test_a_choice_costs_little_however_long_the_queue_is() -> None:
    """Counted in looks at requests, not in time: a choice of 512 waiting requests looks at the window only."""

    class Counted(deque[Waiting]):
        looks = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            for waiting in super().__iter__():
                Counted.looks += 1
                yield waiting

    policy = FeaturePolicy(FEATURES, SlotTable(4, LENGTH))
    policy.choose(Counted(Waiting(request(f"{i}", path(i % 7)), 0.0, 0.0) for i in range(512)), [], 0.0)
    assert Counted.looks <= FEATURES.admission_window + 1
