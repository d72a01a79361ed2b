"""Few prompts often, many seldom, asked of the same server with its caches on and off; the answers must be the same
bytes."""

from __future__ import annotations

from collections.abc import Sequence

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client

from autoglm_perf.load.load import Answered, Question, ask_all, greedy
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.load.zipf import zipf_ranks
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, LATENCY_99, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.equality import first_answers, require_equal
from autoglm_perf.suite.experiment import Description, Found, Published

_METRICS = (REQUESTS, LATENCY, LATENCY_95, LATENCY_99)
_PROMPTS, _EXPONENT, _CONCURRENCY = 200, 1.1, 16
_PROMPT_TOKENS, _MAX_TOKENS = 64, 32
_OFF, _EMPTY, _FILLED = "caches off", "caches on, empty at the start", "caches on, filled before"
DESCRIPTION = Description(
    "cache-zipf",
    "Cache, Zipf-distributed prompts",
    (
        "Where users ask the same again, kept answers make at least five times the requests a second, and every "
        "answer is the same bytes."
    ),
    _METRICS,
    (Published("cache and asynchronous logging off: 1,250 QPS, p99 218 ms", "on: 3,800 QPS, p99 67 ms"),),
)
_LOGGING = (
    "Asynchronous logging, the other half of the published row: there is nothing to turn on. No request is "
    "logged, neither by the three models nor by Triton at its default verbosity; metrics are gathered in "
    "memory and published by a thread of their own."
)


def run(context: Context) -> Found:
    """Both servers run at once, and the sides take turns; the one that is not asked is idle."""
    runs: dict[str, list[RunFigures]] = {_OFF: [], _EMPTY: [], _FILLED: []}
    compared, hits, logged = 0, 0, 0
    caching = {"AUTOGLM_CACHE_MODE": "exact", "AUTOGLM_CACHE_TTL_SECONDS": "3600"}
    with context.server({"AUTOGLM_CACHE_MODE": "off"}) as off, context.server(caching) as on:
        for _ in context.repeated("Zipf"):
            questions = _questions(context)
            plain = _measure(runs[_OFF], _OFF, off, questions)
            _flush(on)
            before = len(on.log_text())
            empty = _measure(runs[_EMPTY], _EMPTY, on, questions)
            filled = _measure(runs[_FILLED], _FILLED, on, questions)
            logged += len(on.log_text()) - before
            right = first_answers(plain)
            compared += require_equal([*plain, *empty, *filled], right)
            hits += sum(answer.cache_hit != "none" for answer in empty)
    return _found(context, runs, compared, hits, logged)


def _questions(context: Context) -> list[Question]:
    """Prompts of their own for each repeat, so that no slot knows one; which is the most frequent is drawn, too."""
    seed = next(context.seeds)
    prompts = exact_prompts(context.tokenizer, _PROMPTS, _PROMPT_TOKENS, seed)
    ranks = zipf_ranks(_PROMPTS, _EXPONENT, _num_requests(context), seed)
    return [Question(prompts[rank], greedy(_MAX_TOKENS)) for rank in ranks]


def _num_requests(context: Context) -> int:
    return context.size(1_500, 200)


def _measure(runs: list[RunFigures], label: str, server: LocalServer, questions: Sequence[Question]) -> list[Answered]:
    answers = ask_all(server.grpc_url, questions, _CONCURRENCY)
    runs.append(figures(label, _CONCURRENCY, [answer.timing for answer in answers]))
    return answers


def _flush(server: LocalServer) -> None:
    with Client(server.grpc_url) as client:
        client.flush_cache()


def _found(context: Context, runs: dict[str, list[RunFigures]], compared: int, hits: int, logged: int) -> Found:
    arms = tuple(arm(label, runs[label], _METRICS) for label in runs)
    asked = _num_requests(context) * context.repeats
    remarks = (
        (
            f"0 of {compared:,} answers differ from the first one to their prompt with caches off, byte for "
            "byte; the run fails where one does."
        ),
        (
            f"With the cache empty at the start, {hits / asked:.0%} of the requests were hits or shared "
            "another's computation."
        ),
        f"{_LOGGING} The server's log grew by {logged} bytes over {2 * asked:,} requests.",
    )
    settings = {
        "workload": (
            f"{_PROMPTS} prompts, Zipf s = {_EXPONENT}, {_PROMPT_TOKENS} tokens in, {_MAX_TOKENS} out, greedy, streamed"
        ),
        "in flight": str(_CONCURRENCY),
        "off": "cache_mode = off; prefix reuse is on for both",
        "load generator": "AsyncClient, on the same cores",
    }
    return Found(arms, settings, f"{_num_requests(context):,} requests", remarks)
