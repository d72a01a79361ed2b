"""Questions that mean the same as one that was answered: asked of the semantic cache, asked in vain, and not asked."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client
from autoglm_export.embedder.export import BUNDLED_EMBEDDER, export_embedder

from autoglm_perf.load.load import Answered, Question, ask_all, greedy
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.semantic.precision import PAIRS_FILE, Pair, read_pairs
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Description, Found

_METRICS = (REQUESTS, LATENCY, FIRST_TOKEN)
_CONCURRENCY, _MAX_TOKENS, _KEEPING_SECONDS = 16, 32, 30.0
_NOT_ASKED, _IN_VAIN, _ASKED = "not asked", "asked, nothing kept", "asked, the other wording kept"
DESCRIPTION = Description(
    "semantic-cache",
    "Semantic cache",
    "A question that was answered in another wording is answered from the cache, and one of another meaning never is.",
    _METRICS,
)


def run(context: Context) -> Found:
    pairs = [pair for pair in read_pairs(PAIRS_FILE) if pair.language == "en"]
    same, others = _chosen(context, pairs, same=True), _chosen(context, pairs, same=False)
    runs: dict[str, list[RunFigures]] = {_NOT_ASKED: [], _IN_VAIN: [], _ASKED: []}
    hits = wrong = 0
    with _server(context) as server, Client(server.grpc_url) as client:
        for _ in context.repeated("semantic cache"):
            client.flush_cache()
            _measure(runs[_NOT_ASKED], _NOT_ASKED, server, [_question(pair.b, semantic=False) for pair in same])
            client.flush_cache()
            _measure(runs[_IN_VAIN], _IN_VAIN, server, [_question(pair.b, semantic=True) for pair in same])
            _keep(server, client, same)
            hits += _hits(_measure(runs[_ASKED], _ASKED, server, [_question(pair.b, semantic=True) for pair in same]))
            _keep(server, client, others)
            wrong += _hits(ask_all(server.grpc_url, [_question(p.b, semantic=True) for p in others], _CONCURRENCY))
    return _found(context, runs, (hits, len(same)), (wrong, len(others)))


@contextmanager
def _server(context: Context) -> Iterator[LocalServer]:
    with tempfile.TemporaryDirectory() as folder:
        export_embedder(BUNDLED_EMBEDDER, Path(folder) / "embedder")
        env = {
            "AUTOGLM_EMBEDDER": f"{folder}/embedder",
            "AUTOGLM_SEMANTIC_VERIFY_SHARE": "0",
            "AUTOGLM_PREFIX_REUSE": "false",  # the sides ask the same prompts
            "AUTOGLM_CACHE_TTL_SECONDS": "3600",
        }
        with context.server(env) as server:
            yield server


def _chosen(context: Context, pairs: Sequence[Pair], *, same: bool) -> list[Pair]:
    return [pair for pair in pairs if pair.same is same][: context.size(len(pairs), 16)]


def _question(text: str, *, semantic: bool) -> Question:
    return Question(text, dataclasses.replace(greedy(_MAX_TOKENS), semantic=semantic))


def _measure(runs: list[RunFigures], label: str, server: LocalServer, questions: Sequence[Question]) -> list[Answered]:
    answers = ask_all(server.grpc_url, questions, _CONCURRENCY)
    runs.append(figures(label, _CONCURRENCY, [answer.timing for answer in answers]))
    return answers


def _keep(server: LocalServer, client: Client, pairs: Sequence[Pair]) -> None:
    """Nothing but the answers to one wording of each, all of them with their meaning."""
    client.flush_cache()
    wordings = list(dict.fromkeys(pair.a for pair in pairs))
    refreshing = dataclasses.replace(greedy(_MAX_TOKENS, cache="refresh"), semantic=True)  # looks nothing up
    ask_all(server.grpc_url, [Question(text, refreshing) for text in wordings], _CONCURRENCY)
    give_up_at = time.monotonic() + _KEEPING_SECONDS
    while client.stats().engine["semantic_entries"] < len(wordings) and time.monotonic() < give_up_at:
        time.sleep(0.05)


def _hits(answers: Sequence[Answered]) -> int:
    return sum(answer.cache_hit == "semantic" for answer in answers)


def _found(context: Context, runs: dict[str, list[RunFigures]], hits: tuple[int, int], wrong: tuple[int, int]) -> Found:
    arms = tuple(arm(label, runs[label], _METRICS) for label in runs)
    (right, num_same), (false, num_others) = hits, wrong
    remarks = (
        f"{right / (num_same * context.repeats):.0%} of the {num_same} paraphrases were answered from the "
        f"cache; of {num_others} questions of another meaning that look alike, {false / context.repeats:g} were.",
        "Precision and recall by threshold: docs/semantic.md.",
    )
    settings = {
        "workload": f"English pairs of the pair set, as text_input, {_MAX_TOKENS} tokens out, greedy, streamed",
        "in flight": str(_CONCURRENCY),
        "caches": "semantic_cache asked, semantic_threshold the default; no hits are checked, prefix reuse is off",
        "load generator": "AsyncClient, on the same cores",
    }
    return Found(arms, settings, f"{num_same} requests", remarks)
