"""A served artifact is replaced under load, by one of another vocabulary; and what is refused where order would be
lost."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_probe import stub_processes
from autoglm_client import AsyncClient, AutoGLMError, PieceOrderError
from autoglm_client.exceptions import LocalServerError
from autoglm_engine.triton.board.engine_watch import _POLL_SECONDS

from tests.support.server.raw_grpc import Stream
from tests.support.server.reloading import (
    EXPLICIT,
    POLL,
    QUESTIONS,
    Crowd,
    Reloads,
    Repository,
    answer_of,
    answers_of,
    check_reloads,
    load_engine,
    until,
    write_artifact,
    write_both,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_both(tmp_path_factory.mktemp("artifacts"))


async def test_explicit_reloads_lose_no_answer_and_mix_none(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    repository = Repository(tmp_path, artifacts[0])
    with repository.serve(*EXPLICIT) as server:
        async with Reloads(repository, server, artifacts) as reloads:
            await check_reloads(reloads, Crowd(server.grpc_url), times=2)
        await asyncio.to_thread(check_a_load_that_fails_ends_nothing, repository, server)
        await until(lambda: list(stub_processes(server.pid or 0).values()).count("engine") == 1)
        (engine,) = [pid for pid, model in stub_processes(server.pid or 0).items() if model == "engine"]
        os.kill(engine, signal.SIGKILL)
        await until(lambda: not server.is_alive())  # the death of one that was loaded later is noticed, too
        assert "Error: the engine's process died" in server.log_text()


def test_a_cancel_reaches_the_engine_that_was_replaced(tmp_path: Path) -> None:
    """Triton hands it to the new one, of whose requests it means none."""
    write_artifact(tmp_path / "artifact", seed=1, stride=1, vocab_size=300, max_length=60_000)
    repository = Repository(tmp_path, tmp_path / "artifact")
    with repository.serve(*EXPLICIT) as server, Stream(server.grpc_url) as stream:
        begun = stream.generate(max_tokens=50_000, ignore_eos=True)
        stream.next()
        (repository.path / "engine" / "1" / "reload").touch()
        load_engine(server)
        assert stream.finish(stream.generate(max_tokens=2)).finish_reason == "length", "the new one is asked"
        assert stream.control(cancel=[begun]) == {"cancelled": 0}
        assert stream.finish(begun).finish_reason == "cancelled"


def check_a_load_that_fails_ends_nothing(repository: Repository, server: LocalServer) -> None:
    """Of an engine that has its board by then, and no other beside it."""
    key = {"triton-grpc-protocol-autoglm-control-key": server.control_key}
    setting = '"semantic_cache" value { string_value: "%s"'
    with triton.InferenceServerClient(server.grpc_url) as client:
        for model in ("autoglm", "engine"):
            client.unload_model(model, headers=key)
        repository.edit("engine/config.pbtxt", setting % "asked", setting % "on")
        with pytest.raises(triton.InferenceServerException, match="the semantic cache needs"):
            client.load_model("engine", headers=key)
        time.sleep(3 * _POLL_SECONDS)  # the tokenizer looks that often
        repository.edit("engine/config.pbtxt", setting % "on", setting % "asked")
        client.load_model("autoglm", headers=key)
    assert asyncio.run(answers_of(server.grpc_url))


async def test_polled_reloads_lose_no_answer_and_mix_none(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    repository = Repository(tmp_path, artifacts[0])
    with repository.serve(*POLL) as server:
        before = stub_processes(server.pid or 0)
        async with Reloads(repository, server, artifacts) as reloads:
            await check_reloads(reloads, Crowd(server.grpc_url), times=2)
        after = stub_processes(server.pid or 0)
        assert {pid for pid, model in before.items() if model != "engine"} <= set(after), (
            "all of them were loaded twice"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model_repository"], "the export left something"
        await check_a_second_version_changes_nothing(repository, server)


async def check_a_second_version_changes_nothing(repository: Repository, server: LocalServer) -> None:
    """Triton would report it ready, while everything in it came from version 1."""
    before, engine = await answers_of(server.grpc_url), repository.path / "engine"
    shutil.copytree(engine / "1", repository.path.parent / "copy").rename(engine / "2")
    await until(lambda: "engine/2 cannot be served: the only version of each model is 1" in server.log_text())
    with triton.InferenceServerClient(server.grpc_url) as client:
        assert not client.is_model_ready("engine", "2")
        assert client.is_model_ready("engine", "1") and client.is_model_ready("autoglm")
    assert await answers_of(server.grpc_url) == before


def test_what_would_lose_the_order_does_not_load(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    repository = Repository(tmp_path, artifacts[0])
    repository.edit("engine/config.pbtxt", "count: 1", "count: 2")
    repository.edit("detokenizer/config.pbtxt", "preserve_ordering: true", "")
    server = repository.serve()
    with pytest.raises(LocalServerError, match=r"the server did not start: (engine has 2|detokenizer must have)"):
        server.__enter__()


async def test_clients_notice_a_server_that_exchanges_pieces(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    """Two detokenizers, one of them slow, with everything taken out that keeps that from being."""
    repository = Repository(tmp_path, artifacts[0])
    reorder(repository)
    (repository.path / "delay").write_text("0")
    failures, answers = [], []
    with repository.serve() as server:
        async with AsyncClient(server.grpc_url) as client:
            known = await answer_of(client, QUESTIONS[1], streamed=False)

            async def ask() -> None:
                try:
                    answers.append(await answer_of(client, QUESTIONS[1], streamed=True))
                except AutoGLMError as error:
                    failures.append(error)

            delay_s = 0.05
            while not failures:  # on a slow machine tokens come later than the slow one answers
                (repository.path / "delay").write_text(str(delay_s))
                await asyncio.gather(*(ask() for _ in range(8)))
                delay_s *= 2
                assert delay_s < 60, "nothing was exchanged"
    assert set(answers) <= {known}, "text out of order was handed out as an answer"
    for failure in failures:
        assert isinstance(failure, PieceOrderError), failure
        assert re.fullmatch(
            r"the server's response \d+ to this request came where response \d+ was due: .*", str(failure)
        )


def reorder(repository: Repository) -> None:
    repository.edit("detokenizer/config.pbtxt", "count: 1", "count: 2")
    repository.edit("detokenizer/config.pbtxt", "preserve_ordering: true", "")
    model = "detokenizer/1/model.py"
    for check in ("check_single_instance", "check_preserves_order"):
        repository.edit(model, f'        {check}(args["model_name"], args["model_config"])\n', "")
    repository.edit(
        model,
        "        return [self.answer(request) for request in requests]\n",
        "        import random\n        import time\n        from pathlib import Path\n\n"
        '        time.sleep(random.choice((0, float((Path(__file__).parents[2] / "delay").read_text()))))\n'
        "        return [self.answer(request) for request in requests]\n",
    )
