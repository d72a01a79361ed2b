"""`map`: order, bounds, laziness, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from autoglm_client import AsyncClient, AutoGLMError, Client, InvalidRequestError
from autoglm_client.mapping import MapLimits, bounded_map
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.client.client_fakes import FakeTransport, Script, text_of


def echo(pause_s: float = 0.0) -> FakeTransport:
    return FakeTransport(lambda request: Script(words=[text_of(request)], pause_s=pause_s))


def client_of(transport: FakeTransport) -> AsyncClient:
    return AsyncClient("fake:1", transport=lambda address: transport)


@settings(max_examples=60, deadline=None)
@given(
    delays=st.lists(st.integers(0, 3), max_size=30),
    concurrency=st.integers(1, 6),
    prefetch_factor=st.integers(1, 3),
    ordered=st.booleans(),
)
def test_every_item_is_answered_once_within_the_bounds(
    delays: list[int], concurrency: int, prefetch_factor: int, ordered: bool
) -> None:
    running = max_running = taken = handed_out = max_ahead = 0

    def items() -> Iterator[tuple[int, int]]:
        nonlocal taken, max_ahead
        for item in enumerate(delays):
            taken += 1
            max_ahead = max(max_ahead, taken - handed_out)
            yield item

    async def call(item: tuple[int, int]) -> int:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        for _ in range(item[1]):
            await asyncio.sleep(0)
        running -= 1
        return item[0]

    async def collect() -> list[int | Exception]:
        nonlocal handed_out
        answers = []
        async for answer in bounded_map(call, items(), MapLimits(concurrency, prefetch_factor, ordered)):
            handed_out += 1
            answers.append(answer)
        return answers

    answers = asyncio.run(collect())
    expected = list(range(len(delays)))
    assert answers == expected if ordered else sorted(answers) == expected  # type: ignore[type-var]
    assert max_running <= concurrency
    assert max_ahead <= concurrency * prefetch_factor + 1  # the answer in the caller's hands


async def test_answers_come_in_order_or_as_they_complete() -> None:
    async def call(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    delays = [0.06, 0.0, 0.03]
    in_order = [a async for a in bounded_map(call, delays, MapLimits(3, 1, ordered=True))]
    as_completed = [a async for a in bounded_map(call, delays, MapLimits(3, 1, ordered=False))]
    assert (in_order, as_completed) == (delays, sorted(delays))


async def test_progress_counts_and_concurrency_is_kept() -> None:
    transport, seen = echo(pause_s=0.002), []
    async with client_of(transport) as client:
        prompts = [str(number) for number in range(20)]
        answers = client.map(prompts, concurrency=4, progress=lambda done, total: seen.append((done, total)))
        assert [answer.text async for answer in answers] == prompts
    assert seen == [(number, 20) for number in range(1, 21)]
    assert transport.max_running == 4


async def test_prompts_may_come_asynchronously() -> None:
    async def prompts() -> AsyncIterator[str]:
        for number in range(5):
            await asyncio.sleep(0.001)
            yield str(number)

    async with client_of(echo()) as client:
        assert [answer.text async for answer in client.map(prompts(), concurrency=2)] == list("01234")


def failing(request: object) -> Script:
    text = text_of(request)  # type: ignore[arg-type]
    errors: list[AutoGLMError] = [InvalidRequestError("bad")] if text == "bad" else []
    return Script(words=[text], errors=errors, pause_s=0.002)


async def test_an_error_takes_its_answers_place_where_asked() -> None:
    async with client_of(FakeTransport(failing)) as client:
        answers = [a async for a in client.map(["a", "bad", "c"], return_exceptions=True)]
    assert [type(answer).__name__ for answer in answers] == ["Result", "InvalidRequestError", "Result"]


async def test_the_first_error_ends_the_map_and_cancels_the_rest() -> None:
    def script(request: object) -> Script:
        return failing(request) if text_of(request) == "bad" else Script(words=["w"] * 500, pause_s=0.01)  # type: ignore[arg-type]

    transport = FakeTransport(script)
    async with client_of(transport) as client:
        with pytest.raises(InvalidRequestError):
            async for _ in client.map(["bad", *"abcdefgh"], concurrency=4):
                pass
    assert not transport.running and not transport.aborted
    assert len(transport.requests) <= 9


async def test_an_error_of_the_prompts_comes_after_the_answers_before_it() -> None:
    def prompts() -> Iterator[str]:
        yield "a"
        yield "b"
        raise KeyError("mine")

    seen = []
    async with client_of(echo()) as client:
        with pytest.raises(KeyError):
            async for answer in client.map(prompts()):
                seen.append(answer.text)
    assert seen == ["a", "b"]


async def test_impossible_bounds_are_refused() -> None:
    async with client_of(echo()) as client:
        with pytest.raises(ValueError, match="concurrency must be at least 1, got 0"):
            await anext(aiter(client.map(["a"], concurrency=0)))


def test_the_blocking_map_takes_prompts_in_the_callers_thread_and_no_further_than_the_window() -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield str(number)

    transport = echo()
    with Client("fake:1", transport=lambda address: transport) as client:
        answers = client.map(prompts(), concurrency=2, prefetch_factor=2)
        assert taken == 0
        assert next(answers).text == "0"
        assert taken == 4
        assert [answer.text for answer in answers] == [str(number) for number in range(1, 100)]


def test_the_blocking_map_may_be_left() -> None:
    transport = FakeTransport(
        lambda request: Script(words=["w"] * 100, pause_s=0.005 if text_of(request) != "0" else 0)
    )
    with Client("fake:1", transport=lambda address: transport) as client:
        answers = client.map((str(n) for n in range(50)), concurrency=4)
        assert next(answers).text == "w" * 100
        del answers
    assert not transport.running and not transport.aborted
