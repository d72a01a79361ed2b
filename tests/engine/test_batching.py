"""The promise behind in-flight batching, on the real model: an answer does not depend on who else is being served."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from tokenizers import Tokenizer

from tests.support.export.artifacts import with_limits

pytestmark = pytest.mark.parity

NUM_REQUESTS, MAX_TOKENS = 12, 20
SHARED_BEGINNING = "You are a helpful assistant that answers in one short and friendly sentence. "
TEXTS = (
    "The capital of France is",
    SHARED_BEGINNING + "Why is the sky blue?",
    "def fibonacci(n):",
    SHARED_BEGINNING + "Why is the sea salty? Name two reasons, the more important one first.",
    "北京是中国的首都,",
    "Once upon a time, in a land of high mountains and deep lakes, there lived an old fisherman who",
)


@dataclass(frozen=True)
class Model:
    runner: Runner
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]

    def engine(self, *, prefix_reuse: bool) -> Engine:
        settings = plain_settings(prefix_reuse=prefix_reuse, token_budget=48)
        return Engine(self.runner, TokenText(self.tokenizer), self.eos_token_ids, settings)


@pytest.fixture(scope="module", params=["exact_artifact", "artifact"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("batching") / "artifact"
    manifest = with_limits(request.getfixturevalue(request.param), folder, num_slots=6, max_length=256)
    runner = load_runner(folder, manifest, num_threads=2)
    yield Model(runner, Tokenizer.from_file(str(folder / "tokenizer.json")), manifest.eos_token_ids)
    runner.close()


def requests(tokenizer: Tokenizer) -> list[Request]:
    """Ragged prompts, some of which begin alike."""
    options = SamplingOptions(max_tokens=MAX_TOKENS, ignore_eos=True)
    texts = (TEXTS[i % len(TEXTS)] + " still" * (i // len(TEXTS)) for i in range(NUM_REQUESTS))
    return [Request(f"r{i}", np.array(tokenizer.encode(text).ids, np.int32), options) for i, text in enumerate(texts)]


def serve(engine: Engine, arrivals: dict[int, list[Request]]) -> dict[str, tuple[int, ...]]:
    """Answers by request; `arrivals`: after how many steps who is submitted."""
    answers, step = dict[str, tuple[int, ...]](), 0
    while arrivals or engine.has_work:
        for request in arrivals.pop(step, []):
            engine.submit(request)
        answers |= {event.request_id: event.token_ids for event in engine.step() if event.is_last}
        step += 1
    return answers


def one_by_one(model: Model) -> dict[str, tuple[int, ...]]:
    engine, answers = model.engine(prefix_reuse=False), dict[str, tuple[int, ...]]()
    for request in requests(model.tokenizer):
        answers |= serve(engine, {0: [request]})
    return answers


def test_batched_equals_one_by_one_token_for_token(model: Model) -> None:
    alone = one_by_one(model)
    assert {len(tokens) for tokens in alone.values()} == {MAX_TOKENS}
    for prefix_reuse in (False, True):
        draw = random.Random(7)
        arrivals = dict[int, list[Request]]()
        for request in requests(model.tokenizer):
            arrivals.setdefault(draw.randrange(40), []).append(request)
        engine = model.engine(prefix_reuse=prefix_reuse)
        assert serve(engine, arrivals) == alone, f"with prefix reuse {prefix_reuse}"
        assert (engine.stats.prefix_hit_tokens > 0) is prefix_reuse
