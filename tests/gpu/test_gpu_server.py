"""The real tritonserver with SmolLM2 on the GPU: an answer, many at once, and a cancel that frees its slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient, Client

from tests.gpu.available import Available
from tests.gpu.gpu_models import export_for_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.server, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gpu_server(here: Available, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    if (reason := here.why_not(here.precision)) is not None:
        pytest.skip(reason)
    artifact = tmp_path_factory.mktemp("smollm2") / "artifact"
    manifest = export_for_gpu("smollm2", artifact, str(here.runtime), here.precision, max_slots=16)
    env = {"AUTOGLM_DEVICE": "cuda"} if manifest.runtime == "onnx" else {}
    with LocalServer(ROOT / "model_repository", artifact=artifact, env=env) as server:
        yield server


def test_it_knows_the_capital_of_france(gpu_server: LocalServer) -> None:
    with Client(gpu_server.grpc_url) as client:
        text = "".join(piece.text for piece in client.stream(QUESTION, max_tokens=16, temperature=0.0))
    assert "Paris" in text
    assert gpu_server.is_healthy()


def test_sixteen_at_once_get_what_one_gets(gpu_server: LocalServer) -> None:
    prompts = [f"{word}, two, three, four," for word in ("One", "1", "one", "Uno")] * 4
    with Client(gpu_server.grpc_url) as client:
        alone = [client.generate(prompt, max_tokens=24, temperature=0.0).text for prompt in prompts[:4]] * 4
        together = [r.text for r in client.map(prompts, max_tokens=24, concurrency=16, temperature=0.0)]
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    assert same >= 14, "rounding may turn near ties, but not many"


def test_leaving_a_stream_frees_its_slot(gpu_server: LocalServer) -> None:
    async def leave() -> float:
        async with AsyncClient(gpu_server.grpc_url) as client:
            async with client.stream(QUESTION, max_tokens=900, temperature=0.0, ignore_eos=True) as stream:
                async for _ in stream:
                    break
            left = time.monotonic()
            while (await client.stats()).engine["running"]:
                await asyncio.sleep(0.01)
            return time.monotonic() - left

    assert asyncio.run(leave()) < 1.0
