"""Reloads ten times in each mode, with all models at once, too; and a thousand streams through a detokenizer that
dawdles.

AUTOGLM_RELOADS (10): times in each mode; AUTOGLM_STREAMS (1000).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from autoglm_client import AsyncClient

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
    write_both,
)

pytestmark = pytest.mark.hostile
RELOADS = int(os.environ.get("AUTOGLM_RELOADS", "10"))
STREAMS = int(os.environ.get("AUTOGLM_STREAMS", "1000"))
AT_ONCE = 16


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_both(tmp_path_factory.mktemp("artifacts"))


@pytest.mark.parametrize("mode", [POLL, EXPLICIT], ids=["poll", "explicit"])
async def test_reloads_lose_no_answer_and_mix_none(
    artifacts: tuple[Path, Path], tmp_path: Path, mode: tuple[str, ...]
) -> None:
    repository = Repository(tmp_path, artifacts[0])
    with repository.serve(*mode) as server:
        async with Reloads(repository, server, artifacts) as reloads:
            total = await check_reloads(reloads, Crowd(server.grpc_url), times=RELOADS)
    print(f"\n{RELOADS} reloads: {dict(total)}")


async def test_all_models_are_loaded_again_at_once(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    """The new tokenizer and detokenizer wait for the new engine, and the old ones serve the old one meanwhile."""
    repository = Repository(tmp_path, artifacts[0])
    with repository.serve(*POLL) as server:
        async with Reloads(repository, server, artifacts) as reloads:
            crowd = Crowd(server.grpc_url)
            for number in range(max(1, RELOADS // 3)):
                await crowd.more(10)
                for model in ("tokenizer", "detokenizer"):
                    (repository.path / model / "1" / "reload").write_text(str(number))
                await reloads.once()
                await crowd.more(10)
            total = reloads.tally(await crowd.stop())
        assert server.log_text().count("successfully loaded 'tokenizer'") >= 2
    assert set(total) == {"old", "new"}, total
    print(f"\n{dict(total)}")


async def test_no_text_is_out_of_order_behind_a_slow_detokenizer(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    repository = Repository(tmp_path, artifacts[0])
    repository.edit(
        "detokenizer/1/model.py",
        "    def answer(self, request):\n",
        "    def answer(self, request):\n        import random\n        import time\n\n"
        "        time.sleep(random.choice((0, 0, 0.002, 0.02)))\n",
    )
    found: Counter[str] = Counter()
    with repository.serve() as server:
        known, turns = await answers_of(server.grpc_url), asyncio.Semaphore(AT_ONCE)
        async with AsyncClient(server.grpc_url) as client:

            async def ask(number: int) -> None:
                async with turns:
                    question = QUESTIONS[number % len(QUESTIONS)]
                    text = await answer_of(client, question, streamed=True)
                    found["right" if text == known[question] else "wrong"] += 1

            await asyncio.gather(*(ask(number) for number in range(STREAMS)))
    assert found == {"right": STREAMS}
