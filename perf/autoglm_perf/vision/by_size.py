"""Time to the first token by the size of a screen, and its parts by the server's clocks."""

from __future__ import annotations

import statistics
import time

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client, GenerationOptions, Image

from autoglm_perf.suite.arms import FIRST_TOKEN
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Metric

from .screens import screen
from .stages import mean_ms, totals

STAGES = {
    "image_decode_time": Metric("decode", "ms", higher_is_better=False),
    "image_resize_time": Metric("resize", "ms", higher_is_better=False),
    "image_tower_time": Metric("encode", "ms", higher_is_better=False),
}
PREFILL = Metric("prefill", "ms", higher_is_better=False)
_PUBLISHED_SECONDS = 1.5  # until the server's metrics have what happened
_ASKED = GenerationOptions(max_tokens=2, temperature=0.0, ignore_eos=True)


def first_token(context: Context, name: str, server: LocalServer, size: tuple[int, int]) -> Arm:
    """One request after another, each with a screen of its own."""
    values: dict[str, list[float]] = {metric.name: [] for metric in (FIRST_TOKEN, *STAGES.values(), PREFILL)}
    with Client(server.grpc_url) as client:
        for _ in context.repeated(f"{name}, a screen of {size[0]} x {size[1]}"):
            files = [screen(*size, next(context.seeds)) for _ in range(context.size(5, 2))]
            before = totals(server.metrics_url)
            asked = [_ask(client, file) for file in files]
            time.sleep(_PUBLISHED_SECONDS)
            after = totals(server.metrics_url)
            for metric, parts in zip((FIRST_TOKEN, PREFILL), zip(*asked, strict=True), strict=True):
                values[metric.name].append(statistics.median(parts))
            for stage, metric in STAGES.items():
                values[metric.name].append(mean_ms(before, after, stage))
    return Arm(f"{name}, {size[0]} x {size[1]}, alone", {name: tuple(found) for name, found in values.items()})


def _ask(client: Client, file: bytes) -> tuple[float, float]:
    """ms: to the first token as the client sees it, and of the prefill."""
    with client.stream([{"role": "user", "content": [Image(file), "Tap the red button"]}], _ASKED) as stream:
        for _ in stream:
            pass
    result = stream.result
    assert result.time_to_first_token_ms is not None, "the answer was streamed"
    return result.time_to_first_token_ms, result.stages.prefill_ms
