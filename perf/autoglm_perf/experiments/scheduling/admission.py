"""Who gets the next slot, where system prompts are shared and slots are scarce: the oldest, or who fits what slots
hold."""

from __future__ import annotations

import random
from contextlib import ExitStack

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client

from autoglm_perf.load.load import Question, ask_all, greedy
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, LATENCY_95, REQUESTS, arm, figures, with_values
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Description, Found, Metric

_CACHED = Metric("prompt tokens from slots", "%")
_METRICS = (REQUESTS, LATENCY, LATENCY_95, FIRST_TOKEN, _CACHED)
_PREFIXES, _PREFIX_TOKENS, _SLOTS = 8, 192, 4
_FIFO, _FEATURES, _HURRIED = "fifo", "features", "features, ageing after 1 s"
_FEW = {"AUTOGLM_MAX_BATCH_SIZE": str(_SLOTS)}
_ENVIRONMENTS = {
    _FIFO: {**_FEW, "AUTOGLM_ADMISSION": "fifo"},
    _FEATURES: {**_FEW, "AUTOGLM_ADMISSION": "features"},
    _HURRIED: {**_FEW, "AUTOGLM_ADMISSION": "features", "AUTOGLM_ADMISSION_MAX_DELAY_MS": "1000"},
}
DESCRIPTION = Description(
    "admission",
    "Admission by features",
    (
        "With more shared system prompts than slots, admitting by features serves more requests a second than "
        "first come, first served."
    ),
    _METRICS,
)


def run(context: Context) -> Found:
    """All servers run at once, idle but for the one that is asked; the policies take turns on the same requests."""
    runs: dict[str, list[RunFigures]] = {label: [] for label in _ENVIRONMENTS}
    cached: dict[str, list[float]] = {label: [] for label in _ENVIRONMENTS}
    with ExitStack() as stack:
        servers = {label: stack.enter_context(context.server(env)) for label, env in _ENVIRONMENTS.items()}
        for _ in context.repeated("policies"):
            questions = _questions(context)
            for label, server in servers.items():
                run, share = _measure(server, label, questions)
                runs[label].append(run)
                cached[label].append(100 * share)
    arms = tuple(with_values(arm(label, runs[label], _METRICS[:-1]), _CACHED, cached[label]) for label in runs)
    settings = {
        "requests": (
            f"all there at once; one of {_PREFIXES} prefixes of {_PREFIX_TOKENS} tokens, drawn at random, then "
            "16 to 48 tokens of their own; 16 to 32 out, greedy"
        ),
        "slots": str(_SLOTS),
        "cache": "bypassed: no prompt comes twice",
    }
    return Found(arms, settings, f"{_count(context)} requests")


def _count(context: Context) -> int:
    return context.size(64, 24)


def _questions(context: Context) -> list[Question]:
    """With prefixes that no slot has seen."""
    seed = next(context.seeds)
    draw = random.Random(seed)
    prefixes = exact_prompts(context.tokenizer, _PREFIXES, _PREFIX_TOKENS, seed)
    ends = exact_prompts(context.tokenizer, _count(context), 48, seed + 1_000_003)
    return [
        Question(
            draw.choice(prefixes) + _words(end, draw.randint(16, 48)), greedy(draw.randint(16, 32), cache="bypass")
        )
        for end in ends
    ]


def _words(text: str, count: int) -> str:
    """The first `count` words, each of which is a token."""
    return "".join(f" {word}" for word in text.split()[:count])


def _measure(server: LocalServer, label: str, questions: list[Question]) -> tuple[RunFigures, float]:
    before = _counters(server)
    answers = ask_all(server.grpc_url, questions, len(questions))
    prompt, cached = (after - old for after, old in zip(_counters(server), before, strict=True))
    return figures(label, len(questions), [answer.timing for answer in answers]), cached / prompt


def _counters(server: LocalServer) -> tuple[int, int]:
    """Prompt tokens of admitted requests, and how many of them came from slots."""
    with Client(server.grpc_url) as client:
        stats = client.stats().engine
    return int(stats["tokens_in"]), int(stats["prefix_hit_tokens"])
