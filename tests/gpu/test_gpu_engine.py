"""The engine over the GPU runner: cancelled requests free their slot within a step, prefixes are reused."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.core import Event, FinishReason, Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.incremental import TokenText

from tests.gpu.available import Available
from tests.gpu.gpu_models import GpuModel, Ids, Make

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def engine_of(model: GpuModel) -> Engine:
    return Engine(model.runner, TokenText(load_tokenizer(model.folder)), eos_token_ids=())


def request(name: str, prompt: Ids, max_tokens: int = 40, **sampling: float) -> Request:
    return Request(name, prompt, SamplingOptions(max_tokens=max_tokens, ignore_eos=True, **sampling), stream=True)  # type: ignore[arg-type]


def drain(engine: Engine, steps: int = 400) -> dict[str, list[Event]]:
    """Request -> its events, until nothing is left to do."""
    events: dict[str, list[Event]] = {}
    for _ in range(steps):
        if not engine.has_work:
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError(f"there is work left after {steps} steps")


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def test_requests_in_flight_get_what_they_get_alone(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    engine = engine_of(tiny_on_gpu("llama", here.precision))
    prompts = {f"r{i}": np.roll(ids, 13 * i)[: 6 + 7 * i] for i in range(12)}  # more than there are slots
    alone = {}
    for name, prompt in prompts.items():
        engine.submit(request(name, prompt))
        alone[name] = tokens(drain(engine)[name])
    for name, prompt in prompts.items():
        engine.submit(request(name, prompt))
    together = {name: tokens(events) for name, events in drain(engine).items()}
    assert all(len(found) == 40 for found in together.values())
    assert sum(alone[name] == together[name] for name in prompts) >= 10, "rounding may turn near ties, but not many"


def test_a_cancelled_request_ends_with_the_next_step(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    engine = engine_of(tiny_on_gpu("glm4", here.precision))
    for name in ("kept", "cancelled"):
        engine.submit(request(name, ids[:30], max_tokens=100))
    for _ in range(8):
        engine.step()
    assert engine.cancel(["cancelled"]) == 1
    last = [event for event in [*engine.step(), *engine.step()] if event.request_id == "cancelled"][-1]
    assert last.finish_reason is FinishReason.CANCELLED
    kept = drain(engine)["kept"]
    assert kept[-1].finish_reason is FinishReason.LENGTH
    assert kept[-1].usage.completion_tokens == 100


def test_the_next_turn_of_a_chat_starts_from_its_slot(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    engine = engine_of(tiny_on_gpu("glm4", here.precision))
    engine.submit(request("first", ids[:60], max_tokens=10))
    said = tokens(drain(engine)["first"])
    turn = np.concatenate([ids[:60], np.array(said, np.int32), ids[60:80]])
    engine.submit(request("second", turn, max_tokens=10))
    again = drain(engine)["second"]
    assert again[-1].usage.cached_tokens >= 60
    fresh = engine_of(tiny_on_gpu("glm4", here.precision))
    fresh.submit(request("second", turn, max_tokens=10))
    cold = drain(fresh)["second"]
    assert cold[-1].usage.cached_tokens == 0
    assert tokens(cold)[:3] == tokens(again)[:3]


def test_penalties_and_seeds_reach_the_device(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    engine = engine_of(tiny_on_gpu("llama", here.precision))

    def answer(**sampling: float) -> list[int]:
        engine.submit(request("r", ids[:20], max_tokens=60, **sampling))
        return tokens(drain(engine)["r"])

    assert answer(temperature=1.0, seed=7) == answer(temperature=1.0, seed=7)
    assert answer(temperature=1.0, seed=7) != answer(temperature=1.0, seed=8)
    plain, penalised = answer(), answer(frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(penalised)) >= len(set(plain))
    assert plain == answer(), "what one request set on its slot is gone for the next one"
