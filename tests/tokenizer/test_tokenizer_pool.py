"""Prompts that take long are made beside the others: no tenant, and nothing long, holds up what is short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from autoglm_engine.errors import EngineError, QueueFull, ShuttingDown, Unavailable
from autoglm_engine.tokenizer import pool as tokenizer_pool
from autoglm_engine.tokenizer.pool import LONG, MAX_SECONDS, SHORT_BYTES, Job, TokenizerPool

from tests.support.engine.fakes import FakeClock
from tests.support.engine.small_service import PATIENCE, until

END = ShuttingDown("the server is shutting down")


class FakeTool:
    def __init__(self) -> None:
        self.is_closed = False
        self.killed = threading.Event()

    def close(self) -> None:
        self.is_closed = True

    def kill(self) -> None:
        self.killed.set()


@dataclass
class World:
    """Jobs by name: begun in this order, ended when they are let go."""

    pool: TokenizerPool[FakeTool]
    clock: FakeClock
    tools: list[FakeTool]
    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, EngineError] = field(default_factory=dict)
    free: dict[str, threading.Event] = field(default_factory=dict)
    used: dict[str, FakeTool] = field(default_factory=dict)

    def put(self, name: str, tenant: str = "", num_bytes: int = SHORT_BYTES + 1) -> None:
        self.free[name] = threading.Event()

        def work(tool: FakeTool) -> None:
            self.used[name] = tool
            self.begun.append(name)
            while not self.free[name].wait(0.01) and not tool.killed.is_set():
                pass
            self.done.append(name)

        self.pool.put(Job(tenant, num_bytes, work, lambda error: self.failed.update({name: error})))

    def let_go(self, *names: str) -> None:
        for name in names:
            self.free[name].set()
            until(lambda name=name: name in self.done)  # type: ignore[misc]

    def wait(self, *names: str) -> None:
        until(lambda: set(names) <= set(self.begun))


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(**options: float) -> World:
        clock, tools = FakeClock(), [FakeTool()]

        def another() -> FakeTool:
            tools.append(FakeTool())
            return tools[-1]

        worlds.append(World(TokenizerPool(tools[0], another, clock=clock, **options), clock, tools))  # type: ignore[arg-type]
        return worlds[-1]

    yield made
    for world in worlds:
        world.pool.close(END, PATIENCE)


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def test_what_is_short_never_waits_for_what_is_long(world: World) -> None:
    for tenant in "abc":
        world.put(f"long {tenant}", tenant)
    world.wait("long a", "long b")
    world.put("short", "d", num_bytes=SHORT_BYTES)
    world.wait("short")
    assert world.begun[2:] == ["short"] and world.used["short"] is world.tools[0]
    assert len({id(tool) for tool in world.used.values()}) == 3


def test_one_tenant_never_has_all_threads(world: World) -> None:
    for number in range(3):
        world.put(f"a{number}", "a")
    world.wait("a0")
    world.put("b0", "b")
    world.wait("b0")
    assert world.begun == ["a0", "b0"]
    world.let_go("a0")
    world.wait("a1")
    assert "a2" not in world.begun


def test_tenants_take_turns(world: World) -> None:
    world.put("first", "z", num_bytes=1)
    world.wait("first")
    for number in range(3):
        world.put(f"a{number}", "a", num_bytes=1)
    world.put("b0", "b", num_bytes=1)
    world.put("c0", "c", num_bytes=1)
    world.let_go("first")
    for name in ("a0", "b0", "c0", "a1", "a2"):
        world.wait(name)
        world.let_go(name)
    assert world.begun == ["first", "a0", "b0", "c0", "a1", "a2"]


def test_so_much_may_wait_of_a_tenant_and_of_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("a", "a")
    world.wait("a")
    for number in range(LONG.max_of_tenant):
        world.put(f"a{number}", "a")
    with pytest.raises(
        QueueFull, match=r"^64 prompts of this tenant wait to be encoded, which is the limit; try again later$"
    ):
        world.put("too much", "a")
    world.put("b", "b")
    world.wait("b")
    world.put("b1", "b", num_bytes=LONG.max_bytes_of_tenant * 2)  # one alone may be of any size
    with pytest.raises(QueueFull, match="1 prompts of this tenant wait"):
        world.put("b2", "b")
    world.put("c", "c", num_bytes=LONG.max_bytes // 2 - 10_000_000)
    with pytest.raises(QueueFull, match="66 prompts wait to be encoded, which is the limit"):
        world.put("d", "d", num_bytes=10_000_000)
    assert set(world.failed) == set()


def test_what_waited_for_too_long_is_not_begun(world: World) -> None:
    world.put("a", "a")
    world.wait("a")
    world.put("late", "a")
    world.clock.now += MAX_SECONDS
    world.put("in time", "a")
    world.let_go("a")
    world.wait("in time")
    assert "late" not in world.begun and isinstance(world.failed["late"], Unavailable)
    assert str(world.failed["late"]) == "the prompt was not encoded within 30 s; try again later"


def test_at_the_end_everybody_is_answered_and_what_runs_is_ended(world: World) -> None:
    world.put("runs", "a")
    world.wait("runs")
    world.put("waits", "a")
    world.put("short", "b", num_bytes=1)
    world.wait("short")
    world.pool.close(END, PATIENCE)
    assert sorted(world.done) == ["runs", "short"] and world.failed["waits"] is END
    assert all(tool.killed.is_set() and tool.is_closed for tool in world.used.values())
    with pytest.raises(ShuttingDown):
        world.put("after")


def test_an_idle_thread_lets_go_of_its_tool(make: Callable[..., World]) -> None:
    world = make(idle_seconds=0.01)
    for name in ("one", "two"):
        world.put(name)
        world.wait(name)
        world.let_go(name)
        until(lambda name=name: world.used[name].is_closed)  # type: ignore[misc]
    assert world.used["one"] is not world.used["two"]
    world.put("short", num_bytes=1)
    world.let_go("short")
    assert not world.tools[0].is_closed


def test_a_thread_that_gets_no_tool_tells_so_and_goes_on() -> None:
    """As where the system has no more file descriptors for a while."""
    failed: list[EngineError] = []
    done = threading.Event()
    is_refused = True

    def another() -> FakeTool:
        if is_refused:
            raise OSError(24, "Too many open files")
        return FakeTool()

    pool = TokenizerPool(FakeTool(), another)
    try:
        for _ in range(3):  # more than there are threads
            count = len(failed)
            pool.put(Job("", SHORT_BYTES + 1, lambda tool: done.set(), failed.append))
            until(lambda count=count: len(failed) > count)  # type: ignore[misc]
        assert all(isinstance(error, Unavailable) and "Too many open files" in str(error) for error in failed)
        is_refused = False
        pool.put(Job("", SHORT_BYTES + 1, lambda tool: done.set(), failed.append))
        assert done.wait(PATIENCE)
    finally:
        pool.close(END, 1.0)


def test_work_that_raises_costs_no_thread() -> None:
    done = threading.Event()
    pool = TokenizerPool(FakeTool(), FakeTool)
    try:
        for num_bytes in [1, SHORT_BYTES + 1] * 3:  # more than there are threads
            pool.put(Job("", num_bytes, lambda tool: 1 / 0, lambda error: None))
        for num_bytes in (1, SHORT_BYTES + 1):
            done.clear()
            pool.put(Job("", num_bytes, lambda tool: done.set(), lambda error: None))
            assert done.wait(PATIENCE)
    finally:
        pool.close(END, 1.0)


def test_a_system_without_threads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_pool.threading.Thread, "start", refuse)
        with pytest.raises(Unavailable, match="the system refuses a thread to encode prompts"):
            world.put("a")
    world.put("b")
    world.wait("b")
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_pool.threading.Thread, "start", refuse)
        world.put("c", "c")
    world.let_go("b")
    world.wait("c")
