"""The whole engine over TensorRT networks that numpy computes: candidates, penalties on the device, many requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from autoglm_engine.core import Adjustments, Candidates, Request, SamplingOptions, Span, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Limits, Runner
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.parity.gate import greedy, greedy_agreement
from autoglm_export.parity.reference import Reference
from tokenizers import Tokenizer

from tests.support.engine.fakes import answers
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.quantized_reference import quantize_reference
from tests.support.export.tiny_models import VOCAB_SIZE, write_checkpoint
from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.tensorrt_networks import define_network

pytestmark = pytest.mark.tensorrt

LIMITS = Limits(num_slots=4, max_length=96, prefill_chunk=16, vocab_size=VOCAB_SIZE, num_candidates=16)
RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "glm4"
    write_checkpoint(path, "glm4")
    return path


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(checkpoint)


@pytest.fixture
def network_runner(source: Checkpoint) -> NetworkRunner:
    made = define_network(source.spec, dict(source.weights), "fp16", cache_length=112, num_candidates=16)
    return NetworkRunner(made, LIMITS, cache_length=112, precise=True)


def test_greedy_tokens_are_those_of_transformers(
    network_runner: NetworkRunner, checkpoint: Path, source: Checkpoint
) -> None:
    """With the weights that the network multiplies."""
    prompt = RANDOM.integers(0, VOCAB_SIZE, 20).astype(np.int32)
    reference = Reference.load(checkpoint)
    quantize_reference(reference, source.spec, "fp16", {})
    (answer,) = greedy(network_runner, [prompt], 64)
    assert greedy_agreement(reference, prompt, answer) == 1.0


def test_candidates_are_those_of_the_adjusted_logits(network_runner: NetworkRunner) -> None:
    """Two slots with their own penalties and temperatures, a third without, and a ban."""
    ids = RANDOM.integers(0, VOCAB_SIZE, (3, 9)).astype(np.int32)
    changed = RANDOM.choice(VOCAB_SIZE, 60, replace=False).astype(np.int32)
    factors = RANDOM.uniform(0.5, 2, 60).astype(np.float32)
    offsets = np.where(RANDOM.random(60) < 0.1, -np.inf, RANDOM.normal(size=60)).astype(np.float32)
    adjustments = [
        Adjustments(True, changed, factors, offsets, 1 / 0.7),
        None,
        Adjustments(True, changed[:5], factors[:5], offsets[:5], 1.0),
    ]
    spans = [Span(slot, 0, ids[slot], True, adjustments[slot]) for slot in range(3)]
    found = network_runner.issue(StepBatch(tuple(spans))).result()
    for slot in range(3):
        check_row(found, slot, adjustments[slot])


def check_row(found: Candidates, row: int, changes: Adjustments | None) -> None:
    logits = found.full_row(row).astype(np.float64)
    scale = 1.0
    if changes is not None:
        values = logits[changes.token_ids]
        factors = changes.factors.astype(np.float64)
        logits[changes.token_ids] = np.where(values < 0, values * factors, values / factors) + changes.offsets
        scale = changes.inverse_temperature
    best = np.argsort(-logits, kind="stable")[: LIMITS.num_candidates]
    np.testing.assert_array_equal(found.token_ids[row], best)
    np.testing.assert_allclose(found.logits[row], logits[best], rtol=1e-5)
    np.testing.assert_allclose(found.log_sum_exp[row], np.log(np.exp(logits * scale).sum()), rtol=1e-5)


def requests() -> list[Request]:
    """Greedy and drawn, with every penalty, sharing prefixes, of all lengths."""
    shared = RANDOM.integers(0, VOCAB_SIZE, 18).astype(np.int32)
    kinds: list[dict[str, Any]] = [
        {},
        {"frequency_penalty": 0.7, "presence_penalty": 0.3},
        {"repetition_penalty": 1.4, "min_tokens": 6},
        {"temperature": 0.8, "top_p": 0.85, "seed": 1, "frequency_penalty": 0.2},
        {"temperature": 1.3, "top_k": 10, "seed": 2},
        {"temperature": 1.0, "seed": 3, "logprobs": 2},
        {"temperature": 0.9, "min_p": 0.1, "seed": 4, "repetition_penalty": 0.8},
    ]
    made = []
    for i, options in enumerate(kinds * 2):
        tail = RANDOM.integers(0, VOCAB_SIZE, 1 + 3 * i % 25).astype(np.int32)
        prompt = np.concatenate([shared, tail]) if i % 2 else tail
        made.append(Request(f"r{i}", prompt, SamplingOptions(max_tokens=5 + i, **options)))
    return made


def served(runner: Runner, source: Checkpoint, asked: list[Request]) -> dict[str, list[int]]:
    """All requests over one engine, three arriving with each step."""
    engine = Engine(runner, TokenText(Tokenizer.from_str(source.tokenizer.decode())), source.eos_token_ids)
    events, waiting = [], list(asked)
    while waiting or engine.has_work:
        for request in waiting[:3]:
            engine.submit(request)
        del waiting[:3]
        events += engine.step()
    failed = [event.error for event in events if event.error]
    assert not failed
    return {name: answer.token_ids for name, answer in answers(events).items()}


def held_type(weight: str) -> Any:
    """Of the precision fp16."""
    return ml_dtypes.bfloat16 if weight.endswith((".output.weight", ".down.weight")) else np.float16


def test_an_engine_answers_as_with_whole_logits_from_numpy(network_runner: NetworkRunner, source: Checkpoint) -> None:
    asked = requests()
    limits = {"num_slots": 4, "max_length": 96, "prefill_chunk": 16}
    weights = {
        name: (w.astype(held_type(name)).astype(np.float32) if w.ndim == 2 else w) for name, w in source.weights.items()
    }
    expected = served(NumpyRunner(source.spec, weights, **limits), source, asked)
    assert served(network_runner, source, asked) == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == len(asked)
