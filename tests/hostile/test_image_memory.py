"""Ten thousand images through the real server: whatever they are, no process grows with their number.

AUTOGLM_IMAGES (10,000): how many.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_client import AsyncClient, Image, InvalidRequestError, LocalServer
from autoglm_export.export import export
from autoglm_perf.system.processes import processes_of, read_memory

from tests.support.export.tiny_glm4v import image_file, write_tiny_glm4v

pytestmark = pytest.mark.hostile
REPOSITORY = Path(__file__).parents[2] / "model_repository"
IMAGES = int(os.environ.get("AUTOGLM_IMAGES", "10000"))
AT_ONCE = 16
KINDS = (("PNG", "RGBA"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "L"), ("JPEG", "RGB"), ("WEBP", "RGBA"))
SMALL = {"AUTOGLM_CACHE_BYTES": f"{1 << 20}"}  # the response cache is full before the first look
MIB = 1 << 20
MAX_GROWTH = 6 * MIB  # of a process, from the first look to the last; 600 bytes an image would be it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("seeing")
    write_tiny_glm4v(folder / "checkpoint")
    export(folder / "checkpoint", folder / "artifact", runtime="native", precision="int8", max_length=256)
    with LocalServer(REPOSITORY, artifact=folder / "artifact", env=SMALL) as made:
        yield made


async def test_no_process_grows_with_the_number_of_images(server: LocalServer) -> None:
    """Each another one, in six kinds and thousands of sizes; one in twenty is damaged, one in fifty left early."""
    outcomes, looks = Counter[str](), list[dict[str, int]]()
    async with AsyncClient(server.grpc_url) as client:
        done = 0
        for share in (0.2, 0.6, 1.0):
            numbers = iter(range(done, done := int(share * IMAGES)))
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(work(client, numbers, outcomes))
            await asyncio.sleep(1)  # who left is noticed
            looks.append({name: read_memory(pid).allocated for name, pid in processes_of(server).items()})
            print(f"\n{done} images, MiB: { ({name: round(size / MIB, 1) for name, size in looks[-1].items()}) }")
    print(f"\n{dict(outcomes)}")
    assert outcomes.total() == IMAGES and outcomes["answered"] > 0.85 * IMAGES
    assert looks[0].keys() == looks[-1].keys() and min(looks[-1].values()) > 0, "every process lives"
    growth = {name: size - looks[0][name] for name, size in looks[-1].items()}
    assert {name: grown for name, grown in growth.items() if grown > MAX_GROWTH} == {}


async def work(client: AsyncClient, numbers: Iterator[int], outcomes: Counter[str]) -> None:
    for number in numbers:
        draw = random.Random(number)
        kind, mode = draw.choice(KINDS)
        file = image_file(draw.randrange(30, 260), draw.randrange(30, 260), seed=number, mode=mode, kind=kind)
        if draw.random() < 0.05:
            file = file[: len(file) // 2] + b"damaged" + file[len(file) // 2 + 7 :]
        try:
            outcomes[await ask(client, file, leaves=draw.random() < 0.02)] += 1
        except InvalidRequestError:
            outcomes["refused"] += 1


async def ask(client: AsyncClient, file: bytes, *, leaves: bool) -> str:
    messages = [{"role": "user", "content": [Image(file), "What is on it?"]}]
    async with client.stream(messages, max_tokens=2, temperature=0.0, ignore_eos=True) as stream:
        async for _ in stream:
            if leaves:
                return "left"
    return "answered"
