"""The promise of drafts on the real model: the same tokens as without, alone and in company; and through the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from autoglm_client import Client, InvalidRequestError, LocalServer
from autoglm_engine.core import Event, Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.speculation.step_cost import measure_fixed_rows
from autoglm_engine.engine.stats import EngineStats
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_perf.load.copying import COPYING, FREE, chats
from autoglm_perf.load.workload import reference_workload

from tests.conftest import MODEL_REPOSITORY

pytestmark = pytest.mark.slow

OPTIONS = (
    SamplingOptions(max_tokens=60),
    SamplingOptions(max_tokens=60, ignore_eos=True, repetition_penalty=1.1),
    SamplingOptions(max_tokens=60, min_tokens=50, frequency_penalty=0.2, logprobs=2),
    SamplingOptions(max_tokens=60, stop=("London", "lazy dog")),
)


@pytest.fixture(scope="module")
def runner(artifact: Path) -> Iterator[Runner]:
    loaded = load_runner(artifact, Manifest.load(artifact), num_threads=2)
    if not loaded.limits.can_verify_drafts:
        pytest.skip("this machine's default runtime verifies no drafts")
    yield loaded
    loaded.close()


def requests(artifact: Path, texts: list[str], *, sampled: bool = False) -> list[Request]:
    tokenizer = load_tokenizer(artifact)
    made = []
    for number, text in enumerate(texts):
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        ids = np.array(tokenizer.encode(chat, add_special_tokens=False).ids, np.int32)
        made.append(Request(f"r{number}", ids, OPTIONS[number // 4 % len(OPTIONS)]))
        if sampled:
            made.append(Request(f"s{number}", ids, SamplingOptions(max_tokens=40, temperature=0.8, seed=number)))
    return made


def serve(
    artifact: Path, runner: Runner, asked: list[Request], mode: str
) -> tuple[dict[str, tuple[object, ...]], EngineStats]:
    """Token ids, log-probabilities and reason of each."""
    manifest, text = Manifest.load(artifact), TokenText(load_tokenizer(artifact))
    settings = plain_settings(speculation=mode, speculation_tokens=12, token_budget=64)
    engine = Engine(runner, text, manifest.eos_token_ids, settings)
    events: list[Event] = []
    for request in asked:
        engine.submit(request)
        events += engine.step()
    while engine.has_work:
        events += engine.step()
    found = {e.request_id: (e.token_ids, e.logprobs, e.finish_reason, e.text_bytes) for e in events if e.is_last}
    return found, engine.stats


@pytest.mark.parametrize("sampled", [False, True])
def test_tokens_are_those_without(artifact: Path, runner: Runner, sampled: bool) -> None:
    asked = requests(artifact, [*chats(COPYING, 16, 1), *chats(FREE, 4, 2)], sampled=sampled)
    plain, _ = serve(artifact, runner, asked, "off")
    for mode in ("auto", "on"):
        drafted, stats = serve(artifact, runner, asked, mode)
        assert drafted == plain
        assert stats.drafts_accepted > (100 if mode == "on" else 20)


def test_the_reference_workload_is_the_same(artifact: Path, runner: Runner) -> None:
    asked = requests(artifact, list(reference_workload(load_tokenizer(artifact), num_prompts=20).prompts))
    assert serve(artifact, runner, asked, "on")[0] == serve(artifact, runner, asked, "off")[0]


def test_what_a_step_costs_is_measured(runner: Runner) -> None:
    assert 1 <= measure_fixed_rows(runner) <= 1000


@pytest.mark.server
def test_a_request_through_the_server(artifact: Path) -> None:
    """Where drafts are made whether they pay or not: what pays is measured when the server starts."""
    prompt = "Repeat: one two three four five six. one two three four five six. one two three four"
    settings = {"AUTOGLM_CACHE_MODE": "off", "AUTOGLM_SPECULATION": "on"}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=settings) as server, Client(server.grpc_url) as client:
        texts = {}
        for asked in (0, 8):
            before = client.stats().engine
            texts[asked] = client.generate(prompt, max_tokens=40, temperature=0.0, ignore_eos=True, prompt_lookup=asked)
            after = client.stats().engine
            drafted = after["tokens_drafted"] - before["tokens_drafted"]
            accepted = after["drafts_accepted"] - before["drafts_accepted"]
            assert (0 < accepted <= drafted) if asked else drafted == 0
        assert texts[0].text == texts[8].text
        with pytest.raises(InvalidRequestError, match="prompt_lookup is 17; it must be between 0 and 16"):
            client.generate(prompt, prompt_lookup=17)
