"""The same question from many users at once: computed for each, or once for all."""

from __future__ import annotations

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client

from autoglm_perf.load.load import Answered, Question, ask_all, greedy
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, LATENCY_95, REQUESTS, arm, figures, with_values
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.equality import first_answers, require_equal
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric

_COMPUTED = Metric("computed tokens", "prompt and output", higher_is_better=False)
_METRICS = (LATENCY, LATENCY_95, FIRST_TOKEN, REQUESTS, _COMPUTED)
_PROMPT_TOKENS, _MAX_TOKENS = 128, 64
DESCRIPTION = Description(
    "coalescing",
    "Coalescing",
    (
        "Equal requests at the same time share one computation: its tokens are computed once, and all have their "
        "answer as soon as one would."
    ),
    _METRICS,
)


def run(context: Context) -> Found:
    sizes = (16, 64) if not context.quick else (16,)
    arms, baselines = list[Arm](), dict[str, str]()
    with context.server({"AUTOGLM_CACHE_MODE": "off"}) as off, context.server() as on:
        for count in sizes:
            pair = _pair(context, off, on, count)
            baselines |= dict.fromkeys((one.label for one in pair), pair[0].label)
            arms += pair
    settings = {"requests": f"equal ones at once, {_PROMPT_TOKENS} tokens in, {_MAX_TOKENS} out, greedy, streamed"}
    remarks = ("Every answer of a repeat is the same bytes with and without; the run fails where one is not.",)
    return Found(tuple(arms), settings, "as many requests as the row says", remarks, baselines)


def _pair(context: Context, off: LocalServer, on: LocalServer, count: int) -> list[Arm]:
    """Alternating; each repeat has a prompt that nobody asked before."""
    labels = {off: f"{count} at once, caches off", on: f"{count} at once, coalesced"}
    runs: dict[str, list[RunFigures]] = {label: [] for label in labels.values()}
    computed: dict[str, list[float]] = {label: [] for label in runs}
    for _ in context.repeated(f"{count} at once"):
        (prompt,) = exact_prompts(context.tokenizer, 1, _PROMPT_TOKENS, next(context.seeds))
        given = list[Answered]()
        for server, label in labels.items():
            answers, tokens = _ask(server, [Question(prompt, greedy(_MAX_TOKENS))] * count)
            runs[label].append(figures(label, count, [answer.timing for answer in answers]))
            computed[label].append(tokens)
            given += answers
        require_equal(given, first_answers(given))
    return [with_values(arm(label, runs[label], _METRICS[:-1]), _COMPUTED, computed[label]) for label in runs]


def _ask(server: LocalServer, questions: list[Question]) -> tuple[list[Answered], int]:
    before = _computed(server)
    answers = ask_all(server.grpc_url, questions, len(questions))
    return answers, _computed(server) - before


def _computed(server: LocalServer) -> int:
    """Tokens that the model has computed since it was loaded: of prompts without what slots held already, and of
    answers."""
    with Client(server.grpc_url) as client:
        stats = client.stats().engine
    return int(stats["tokens_in"] - stats["prefix_hit_tokens"] + stats["tokens_out"])
