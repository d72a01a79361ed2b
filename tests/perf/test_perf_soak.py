"""The soak without a server: pauses, what counts as right, and what is said of a run."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from autoglm_client import AsyncClient, InvalidRequestError, QueueFullError
from autoglm_perf.load.load import Question, greedy
from autoglm_perf.load.pauses import PauseWatch
from autoglm_perf.soak.traffic import SHARES, Asker, Kind, Record, Task, draw_task
from autoglm_perf.soak.verdict import Soaked, panels, unmet
from autoglm_perf.soak.watch import Sample, mapped_regions
from hypothesis import given
from hypothesis import strategies as st

RIGHT = {"p": "one two three"}
IDLE = {"running": 0, "waiting": 0, "slots_busy": 0, "steps": 0}


def test_a_silence_counts_only_while_a_stream_decodes() -> None:
    watch = PauseWatch()
    watch.began(1.0)
    watch.event(1.2)
    watch.ended(1.3)  # nobody decodes
    watch.began(9.0)
    watch.event(9.4)
    assert watch.longest == pytest.approx(0.4)


def test_events_of_any_stream_end_a_silence() -> None:
    watch = PauseWatch()
    watch.began(0.0)
    watch.began(0.3)
    watch.left()  # one of the two; the other one still decodes
    watch.ended(0.8)
    assert watch.longest == pytest.approx(0.5)
    assert watch.longest_by_second == {0: pytest.approx(0.5)}


def test_more_ends_than_beginnings_are_refused() -> None:
    with pytest.raises(AssertionError, match="only a stream that began can end"):
        PauseWatch().left()


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40))
def test_the_longest_pause_is_the_longest_gap_of_a_stream_alone(gaps: list[float]) -> None:
    watch, now = PauseWatch(), 5.0
    watch.began(now)
    for gap in gaps:
        now += gap
        watch.event(now)
    assert watch.longest == pytest.approx(max(gaps))


@dataclass
class FakeClient:
    """Gives `pieces`, or raises `error`; only what an asker calls."""

    pieces: tuple[str, ...] = ("one ", "two ", "three")
    error: Exception | None = None

    @asynccontextmanager
    async def stream(self, prompt: str, options: object) -> AsyncIterator[AsyncIterator[Any]]:
        yield self._read()

    async def _read(self) -> AsyncIterator[Any]:
        for piece in self.pieces:
            yield SimpleNamespace(text=piece)
        if self.error:
            raise self.error

    async def generate(self, prompt: str, options: object) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(text="".join(self.pieces))


async def perform(kind: Kind, client: FakeClient) -> str | None:
    watch = PauseWatch()
    asker = Asker(cast(AsyncClient, client), RIGHT, watch)
    record = await asker.perform(Task(kind, Question("p", greedy(3)), patience=0.1), due=0.0)
    watch.began(1e12)
    watch.left()  # whatever happened, no stream is left behind as decoding
    assert watch.longest < 1e6
    return record.wrong


@pytest.mark.parametrize("kind", [Kind.STREAM, Kind.KEPT, Kind.WHOLE, Kind.SLOW])
async def test_a_valid_request_is_right_only_with_the_right_bytes(kind: Kind) -> None:
    assert await perform(kind, FakeClient()) is None
    assert "instead of" in str(await perform(kind, FakeClient(("one ", "two ", "tree"))))
    assert "instead of" in str(await perform(kind, FakeClient(("one ", "two "))))
    assert "QueueFullError" in str(await perform(kind, FakeClient(error=QueueFullError("full"))))


async def test_a_bad_request_is_right_only_when_it_is_refused_as_bad() -> None:
    assert await perform(Kind.BAD, FakeClient(error=InvalidRequestError("top_p is 0"))) is None
    assert "was answered" in str(await perform(Kind.BAD, FakeClient()))
    assert "QueueFullError" in str(await perform(Kind.BAD, FakeClient(error=QueueFullError("full"))))


async def test_what_came_before_a_cancel_must_begin_the_right_answer() -> None:
    assert await perform(Kind.CANCEL, FakeClient()) is None
    assert "does not begin" in str(await perform(Kind.CANCEL, FakeClient(("two ",))))


def test_kinds_come_by_their_shares() -> None:
    draw = random.Random(1)
    pool = [Question("p", greedy(3, cache="bypass"))]
    tasks = [draw_task(pool, draw) for _ in range(20_000)]
    counts = Counter(task.kind for task in tasks)
    assert {kind: round(100 * count / 20_000) for kind, count in counts.items()} == pytest.approx(SHARES, abs=1)
    caches = {(task.kind is Kind.KEPT, task.question.options.cache) for task in tasks if task.kind is not Kind.BAD}
    assert caches == {(True, "default"), (False, "bypass")}
    assert all(task.question.options != pool[0].options for task in tasks if task.kind is Kind.BAD)


def sample(at: float, memory: int = 100, **engine: int) -> Sample:
    return Sample(
        at, {"engine": memory, "tokenizer": 10}, {"engine": 999}, {"engine": 999}, 2, 4096, {**IDLE, **engine}
    )


def soaked(**changes: Any) -> Soaked:
    records = [Record(Kind.STREAM, 1.0, 1.5), Record(Kind.BAD, 2.0, 2.1), Record(Kind.SLOW, 3.0, 9.0)]
    samples = [sample(0, 50), *(sample(float(at), 100, steps=100 * at) for at in (1, 2, 3))]
    return replace(Soaked(0.0, 1.0, records, samples, {1: 0.2}, sample(4), 0), **changes)


def test_a_soak_that_shows_everything_leaves_nothing_unmet() -> None:
    good = soaked()
    assert unmet(good) == ()
    assert good.step_s == pytest.approx(0.01)
    assert good.right_share == 1.0
    assert good.latencies == [0.5]  # a slow reader's time is its own
    assert [panel.title.split()[0] for panel in panels(good)] == ["memory", "latency", "longest", "slots", "shared"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"records": [Record(Kind.STREAM, 0, 1, "'x' instead of 'y'")]},
            "1 of 1 requests .* .1 streamed.*'x' instead of 'y'",
        ),
        ({"records": [Record(Kind.BAD, 0, 1, "was answered")]}, "1 bad input"),
        ({"samples": [sample(0, 50), sample(1, 100), sample(2, 104), sample(3, 100)]}, "memory grew by 3.6%"),
        ({"pauses": {7: 0.27}}, "a pause of 270 ms; 250 ms and a step of 10 ms"),
        ({"left_over": 1}, "1 regions of shared memory outlived"),
        ({"last": sample(4, slots_busy=1)}, "running 0, waiting 0, slots_busy 1"),
        ({"last": replace(sample(4), engine={})}, "slots_busy unknown"),
        ({"samples": [sample(1), replace(sample(2), shared_bytes=8192)]}, "shared memory grew by 100"),
    ],
)
def test_what_a_soak_does_not_show_is_said(changes: dict[str, Any], said: str) -> None:
    assert any(re.search(said, text) for text in unmet(soaked(**changes)))


def test_memory_before_it_settled_does_not_count() -> None:
    early = [sample(0.2, 500), sample(1, 100), sample(2, 101)]
    assert not any("memory" in text for text in unmet(soaked(samples=early)))


def test_regions_of_shared_memory_are_read_from_what_a_process_maps(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    rows = [
        "7f00-7f01 rw-s 00000000 00:18 9   /dev/shm/board one",
        "7f02-7f03 rw-s 0 00:18 8 /dev/shm/gone (deleted)",
        "7f04-7f05 r-xp 0 08:01 7 /usr/lib/x.so",
    ]
    (tmp_path / "7" / "maps").write_text("\n".join(rows))
    assert mapped_regions(7, tmp_path) == {Path("/dev/shm/board one")}
    assert mapped_regions(8, tmp_path) == set()
