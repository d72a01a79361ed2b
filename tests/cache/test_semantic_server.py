"""The semantic cache through the whole path: the real server, the embedder, the ensemble, the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from autoglm_client import Client, InvalidRequestError, LocalServer, Message
from autoglm_engine.embedder import Embedder
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.conftest import MODEL_REPOSITORY

pytestmark = pytest.mark.server
OPTIONS = {"max_tokens": 16, "temperature": 0.0}
QUESTION = [Message("user", "What is the best way to learn the guitar?")]
PARAPHRASE = [Message("user", "How should I best learn to play the guitar?")]
OPPOSITE = [Message("user", "What is the worst way to learn the guitar?")]


@pytest.fixture(scope="module")
def server(artifact: Path, embedder: Path) -> Iterator[LocalServer]:
    env = {"AUTOGLM_EMBEDDER": str(embedder), "AUTOGLM_SEMANTIC_VERIFY_SHARE": "1", "AUTOGLM_SEMANTIC_THRESHOLD": "0.8"}
    env["AUTOGLM_SEMANTIC_TIMEOUT_MS"] = "60000"  # no test fails because a machine is slow
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.grpc_url) as made:
        made.flush_cache()
        yield made


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.05)


def counted(client: Client, name: str) -> float:
    return float(client.stats().engine[f"semantic_{name}"])


def keep(client: Client, *, tenant: str | None = None) -> str:
    """Ask, and wait until the answer is kept with its meaning."""
    before = counted(client, "entries")
    kept = client.generate(QUESTION, semantic=True, tenant=tenant, **OPTIONS)  # type: ignore[arg-type]
    assert kept.cache_hit == "none"
    wait_until(lambda: counted(client, "entries") == before + 1)
    return kept.text


def test_a_paraphrase_hits_and_an_opposite_does_not(client: Client) -> None:
    text = keep(client)
    found = client.generate(PARAPHRASE, semantic=True, **OPTIONS)  # type: ignore[arg-type]
    assert (found.cache_hit, found.text, found.finish_reason) == ("semantic", text, "length")
    assert found.cache_age_ms > 0 and found.usage.completion_tokens == 16
    guarded = counted(client, "guarded")
    assert client.generate(OPPOSITE, semantic=True, **OPTIONS).cache_hit == "none"  # type: ignore[arg-type]
    assert counted(client, "guarded") == guarded + 1
    with client.stream(PARAPHRASE, semantic=True, **OPTIONS) as stream:  # type: ignore[arg-type]
        again = stream.read_all()
    assert (again.cache_hit, again.text) == ("semantic", text)


def test_who_did_not_ask_is_another_tenant_or_has_other_options_is_computed(client: Client) -> None:
    text = keep(client)
    for changes in (
        {},
        {"semantic": False},
        {"semantic": True, "tenant": "t"},
        {"semantic": True, "max_tokens": 15},
        {"semantic": True, "cache": "refresh"},
    ):
        result = client.generate(PARAPHRASE, **{**OPTIONS, **changes})  # type: ignore[arg-type]
        assert result.cache_hit == "none", changes
        assert result.text != text
        client.flush_cache()
        keep(client)


def test_the_exact_cache_never_holds_a_semantic_answer(client: Client) -> None:
    text = keep(client)
    assert client.generate(PARAPHRASE, semantic=True, **OPTIONS).cache_hit == "semantic"  # type: ignore[arg-type]
    own = client.generate(PARAPHRASE, **OPTIONS)  # type: ignore[arg-type]
    assert own.cache_hit == "none" and own.text != text
    kept = client.generate(PARAPHRASE, semantic=True, **OPTIONS)  # type: ignore[arg-type]
    assert (kept.cache_hit, kept.text) == ("exact", own.text)


def test_a_hit_is_computed_again_and_counted(client: Client) -> None:
    keep(client)
    before = counted(client, "checked")
    assert client.generate(PARAPHRASE, semantic=True, **OPTIONS).cache_hit == "semantic"  # type: ignore[arg-type]
    wait_until(lambda: counted(client, "checked") == before + 1)
    assert client.health().ready


def test_the_embedder_answers_as_it_does_alone(server: LocalServer, embedder: Path) -> None:
    texts = ["How do I sort a list?", "法国的首都是哪里？", "x"]
    expected = Embedder(embedder).embed(texts)
    with InferenceServerClient(server.grpc_url) as caller:
        for text, row in zip(texts, expected, strict=True):
            tensor = InferInput("text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
            found = caller.infer("embedder", [tensor]).as_numpy("embedding")
            np.testing.assert_allclose(found[0], row, atol=1e-5)
        tensor.set_data_from_numpy(np.array([[b"\xff"]], dtype=np.object_))
        with pytest.raises(InferenceServerException, match="text is not valid UTF-8: byte 0xff at 0"):
            caller.infer("embedder", [tensor])


def test_without_an_embedder_the_server_runs_and_who_asks_is_refused(artifact: Path, tmp_path: Path) -> None:
    env = {"AUTOGLM_EMBEDDER": str(tmp_path)}
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, env=env) as server, Client(server.grpc_url) as client:
        assert client.generate(QUESTION, **OPTIONS).cache_hit == "none"  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="make it with `autoglm export-embedder`"):
            client.generate(QUESTION, semantic=True)
