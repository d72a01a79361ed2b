"""What twenty thousand requests through the real server leave behind, process by process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_probe import stub_processes
from autoglm_client import AsyncClient, InvalidRequestError

from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric

_CONCURRENCY = 16
_SMALL_CACHE = {"AUTOGLM_CACHE_BYTES": f"{1 << 20}"}  # full before the first look, so that it does not pass for growth
_MOMENTS = (0.1, 0.55, 1.0)  # shares of all requests, after which the processes are looked at
_PROCESSES = ("engine", "tokenizer", "detokenizer", "tritonserver")
_METRICS = tuple(Metric(name, "MB", higher_is_better=False) for name in (*_PROCESSES, "this client"))
DESCRIPTION = Description(
    "memory-flat",
    "Memory over many requests",
    (
        "Nothing grows with the number of requests: pools are as large as at the beginning, and whoever leaves "
        "leaves nothing."
    ),
    _METRICS,
    (),
)


@dataclass(slots=True)
class Outcomes:
    """What became of the requests."""

    answered: int = 0
    refused: int = 0
    left: int = 0


def run(context: Context) -> Found:
    """One run: memory is not a matter of chance, and a run is long enough to show."""
    count = context.size(20_000, 600)
    with context.server(_SMALL_CACHE) as server:
        outcomes, moments = asyncio.run(_ask_all(server, count, context.say))
    arms = tuple(Arm(f"after {number:,} requests", values) for number, values in moments.items())
    settings = {
        "requests": "new prompts of 2 to 10 words, 1 to 4 tokens out; one in ten repeats, one in twenty is left early, "
        "one in fifty is refused",
        "in flight": f"{_CONCURRENCY}",
        "response cache": "1 MB, so that it is full from the first look on",
        "memory": "resident memory that no file is behind (RssAnon and RssShmem), while nothing is in flight",
    }
    remark = (
        f"{outcomes.answered:,} answered, {outcomes.left:,} left before their end, "
        f"{outcomes.refused:,} refused as they should be."
    )
    return Found(arms, settings, f"{count:,} requests, one run", (remark,))


async def _ask_all(
    server: LocalServer, count: int, say: Callable[[str], None]
) -> tuple[Outcomes, dict[int, dict[str, tuple[float, ...]]]]:
    """The outcomes, and the number of requests so far -> process -> megabytes."""
    draw, outcomes, asked = random.Random(1), Outcomes(), 0
    moments = dict[int, dict[str, tuple[float, ...]]]()
    async with AsyncClient(server.grpc_url) as client:
        for share in _MOMENTS:
            numbers = iter(range(asked, int(share * count)))
            async with asyncio.TaskGroup() as workers:
                for _ in range(_CONCURRENCY):
                    workers.create_task(_work(client, numbers, draw, outcomes))
            asked = int(share * count)
            await asyncio.sleep(1.0)  # those who left are noticed
            moments[asked] = {name: (round(size, 1),) for name, size in memory(server).items()}
            say(f"{asked:,} requests: {moments[asked]}")
    return outcomes, moments


async def _work(client: AsyncClient, numbers: Iterator[int], draw: random.Random, outcomes: Outcomes) -> None:
    for number in numbers:
        try:
            await _ask(client, number, draw, outcomes)
        except InvalidRequestError:
            outcomes.refused += 1


async def _ask(client: AsyncClient, number: int, draw: random.Random, outcomes: Outcomes) -> None:
    kind = draw.random()
    if kind < 0.02:
        await client.generate("x", top_p=7.0)
    prompt = "The sky is" if kind > 0.9 else " ".join(f"{number * 31 % 9973} w{i}" for i in range(draw.randrange(1, 6)))
    if kind < 0.07:
        outcomes.left += await _leave(client, prompt)
        return
    await client.generate(prompt, max_tokens=draw.randrange(1, 5), temperature=0.0)
    outcomes.answered += 1


async def _leave(client: AsyncClient, prompt: str) -> bool:
    async with client.stream(prompt, max_tokens=40, ignore_eos=True) as stream:
        async for _ in stream:
            return True
    return False


def memory(server: LocalServer) -> dict[str, float]:
    """Process -> megabytes."""
    assert server.pid is not None
    pids = {name: pid for pid, name in stub_processes(server.pid).items()} | {"tritonserver": server.pid}
    sizes = {name: _megabytes(f"{pids[name]}") for name in _PROCESSES}
    return {**sizes, "this client": _megabytes("self")}


def _megabytes(process: str) -> float:
    """Memory that no file is behind: weights come and go with the page cache, and count for whoever else maps them."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    kilobytes = [int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(kilobytes) / 1024
