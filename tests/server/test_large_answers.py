"""Answers that are larger than the shared memory of the models: legal, and nobody else's affair."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client, GenerationOptions

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.raw_grpc import Stream
from tests.support.server.reloading import write_artifact

pytestmark = pytest.mark.server
LENGTH = 8192
LARGE = GenerationOptions(max_tokens=5000, ignore_eos=True, temperature=0.0, logprobs=20)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    artifact = tmp_path_factory.mktemp("long") / "artifact"
    write_artifact(artifact, seed=1, stride=1, vocab_size=300, max_length=LENGTH)
    with LocalServer(MODEL_REPOSITORY, artifact=artifact, http=False) as server, Client(server.grpc_url) as made:
        yield made
        assert server.is_healthy(60.0)


@pytest.mark.timeout(600)
def test_it_arrives_in_a_stream_whenever_it_is_asked_for(client: Client) -> None:
    answers = [client.stream("x", LARGE).read_all() for _ in range(2)]
    assert [len(answer.logprobs or ()) for answer in answers] == [5000, 5000]
    assert answers[0].text == answers[1].text
    assert {answer.cache_hit for answer in answers} == {"none"}


@pytest.mark.timeout(600)
def test_as_a_whole_it_comes_in_pieces_that_the_client_joins(client: Client) -> None:
    whole = client.generate("w", LARGE)
    assert len(whole.logprobs or ()) == 5000 and whole.usage.completion_tokens == 5000
    assert whole.text == client.stream("w", LARGE).read_all().text


@pytest.mark.timeout(600)
def test_in_one_piece_it_is_refused_in_one_sentence_beside_the_stream_that_shares_it(client: Client) -> None:
    with client.stream("y", LARGE) as stream, Stream(client.urls[0]) as raw:
        first = next(stream)
        options = {"max_tokens": 5000, "ignore_eos": True, "temperature": 0.0, "logprobs": 20}
        refused = raw.finish(raw.generate("y", stream=False, **options))
        assert re.search(r"takes \d+ bytes in one piece.*have it streamed", refused.error or "")
        num_left = sum(len(piece.logprobs or ()) for piece in stream)
    assert len(first.logprobs or ()) + num_left == 5000


@pytest.mark.timeout(600)
def test_a_thousand_tokens_with_all_logprobs_arrive_in_one_piece_and_are_kept(client: Client) -> None:
    found = [client.generate("z", LARGE, max_tokens=1000) for _ in range(2)]
    assert [len(answer.logprobs or ()) for answer in found] == [1000, 1000]
    assert [answer.cache_hit for answer in found] == ["none", "exact"]
