"""Who is admitted first where requests have priorities, and that no class waits for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autoglm_engine.settings.model import EngineSettings, plain_settings
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_admission import FEATURES, Door, path
from tests.support.engine.fakes import request

FIFO = plain_settings()
PATIENT = replace(FIFO, admission_max_passed=1_000_000, admission_max_delay_ms=3_600_000)


def queue(door: Door, *levels: int) -> None:
    """One request of each level, named after its place among all that came and its level: 0:5, 1:1."""
    first = len(door.admitted) + len(door.scheduler.waiting)
    door.queue(
        *(
            replace(request(f"{first + place}:{level}", path(1 + place % 9)), priority=level)
            for place, level in enumerate(levels)
        )
    )


def serve_all(door: Door) -> list[int]:
    """The levels in the order of admission, each request served alone."""
    begun = len(door.admitted)
    while door.scheduler.waiting:
        door.end(*door.step())
    return [int(name.split(":")[1]) for name in door.admitted[begun:]]


@pytest.mark.parametrize("settings", [PATIENT, replace(PATIENT, admission="features")], ids=["fifo", "features"])
def test_a_class_is_admitted_before_the_ones_after_it(settings: EngineSettings) -> None:
    door = Door(settings, num_slots=1)
    queue(door, 5, 9, 1, 5, 2, 1)
    assert serve_all(door) == [1, 1, 2, 5, 5, 9]


def test_within_a_class_the_policy_decides() -> None:
    door = Door(FEATURES, num_slots=2)
    door.queue(request("r", path(1, 1)))
    door.step()
    plain, alike = request("plain", path(2, 2)), request("alike", path(1, 1))
    door.queue(replace(alike, id="late", priority=9), plain, alike)
    assert door.step() == ["alike"]


def test_who_runs_is_not_interrupted() -> None:
    door = Door(FIFO, num_slots=1)
    queue(door, 9)
    assert door.step() == ["0:9"]
    queue(door, 1)
    assert door.step() == []
    assert [one.request.id for one in door.scheduler.running] == ["0:9"]


def test_a_class_that_was_passed_over_often_gets_one_slot_and_waits_again() -> None:
    door = Door(replace(PATIENT, admission_max_passed=3), num_slots=1)
    queue(door, 9, 9, *[1] * 9)
    assert serve_all(door) == [1, 1, 1, 9, 1, 1, 1, 9, 1, 1, 1]


def test_a_class_that_was_passed_over_long_ago_gets_one_slot() -> None:
    door = Door(replace(PATIENT, admission_max_delay_ms=500), num_slots=1)
    queue(door, 9, 9, 1, 1, 1, 1)
    door.end(*door.step())  # the first time that the class is passed over
    door.now += 0.499
    door.end(*door.step())
    door.now += 0.001
    door.end(*door.step())
    door.end(*door.step())
    assert [name.split(":")[1] for name in door.admitted] == ["1", "1", "9", "1"]


def test_without_patience_everyone_goes_in_the_order_of_arrival() -> None:
    door = Door(replace(FIFO, admission_max_passed=0), num_slots=1)
    queue(door, 5, 1, 9, 2, 1)
    assert serve_all(door) == [5, 1, 9, 2, 1]


def test_who_came_later_was_not_passed_over() -> None:
    """A class counts from when it waits, not from when others began to be served."""
    door = Door(replace(PATIENT, admission_max_passed=2), num_slots=1)
    queue(door, 1, 1, 1, 1, 9)
    assert serve_all(door) == [1, 1, 1, 1, 9]


@given(st.lists(st.sampled_from([1, 5, 9]), min_size=1, max_size=40), st.integers(0, 6))
def test_no_class_is_passed_over_more_often_than_said(levels: list[int], most: int) -> None:
    """By requests that came later than its oldest. Several classes may be due at once: then each waits for the
    others."""
    door = Door(replace(PATIENT, admission_max_passed=most), num_slots=1)
    queue(door, *levels)
    serve_all(door)
    served = [tuple(map(int, name.split(":"))) for name in door.admitted]
    assert sorted(served) == list(enumerate(levels))
    since = dict.fromkeys(levels, 0)  # level -> the place in `served` after its last admission
    for place, (came, level) in enumerate(served):
        passed_by = [other for other, _ in served[since[level] : place] if other > came]
        assert len(passed_by) <= most + 2
        since[level] = place + 1


@given(st.lists(st.sampled_from([None, 5, 5, 5, 6, 9]), min_size=8, max_size=60), st.integers(1, 3))
def test_a_later_class_gains_nothing(happens: list[int | None], most: int) -> None:
    """None: somebody is served; else a request of that level comes. Whoever asks to wait is not admitted while one of
    the class before, 5, waits that came earlier; so a caller gains nothing by it."""
    door = Door(replace(PATIENT, admission_max_passed=most), num_slots=1)
    for level in [*happens, *[None] * len(happens)]:
        if level is not None:
            queue(door, level)
            continue
        waiting = [tuple(map(int, each.request.id.split(":"))) for each in door.scheduler.waiting]
        for admitted in door.step():
            came, _ = map(int, admitted.split(":"))
            assert all(came <= other for other, other_level in waiting if other_level == 5)
            door.end(admitted)
