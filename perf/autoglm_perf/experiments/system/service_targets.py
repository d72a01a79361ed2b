"""Which requests meet the published service targets on this machine, and which do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoglm_cli.server.local_server import LocalServer

from autoglm_perf.baselines.analyzer import AnalyzerUnavailable, Sweep, find_binary, run_sweep
from autoglm_perf.load.load import Question, ask_all, greedy
from autoglm_perf.load.measures import Goal, RequestTiming, RunFigures, summarise
from autoglm_perf.load.workload import Workload, exact_prompts
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, REQUESTS
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric, Published
from autoglm_perf.suite.suite import CannotRun

_ERRORS = Metric("errors", "%", higher_is_better=False)
_METRICS = (REQUESTS, LATENCY, LATENCY_95, _ERRORS)
_CONCURRENCY = 16
_MAX_P95_MS, _MIN_RATE, _MAX_ERRORS = 200.0, 1_000.0, 0.5
DESCRIPTION = Description(
    "service-targets",
    "Service targets",
    "p95 of at most 200 ms, 1,000 requests a second and fewer than 0.5% errors: what of it is met, by kind of request.",
    _METRICS,
    (Published("-", "p95 <= 200 ms, >= 1,000 requests/s, errors < 0.5%"),),
)

Measure = Callable[[], Sequence[RequestTiming]]


def run(context: Context) -> Found:
    try:
        find_binary()
    except AnalyzerUnavailable as error:
        raise CannotRun(str(error)) from None
    with context.server({"AUTOGLM_CACHE_TTL_SECONDS": "3600"}) as server:
        kept = _workload(context, 8, 128, 64)
        ask_all(server.grpc_url, [Question(prompt, greedy(64)) for prompt in kept.prompts], 8)
        measures: dict[str, Measure] = {
            "kept answers of 64 tokens": lambda: _hits(context, server, kept),
            "1 token computed, prompt of 4": lambda: _computed(context, server, context.size(1_000, 100), 4, 1),
            "1 token computed, prompt of 128": lambda: _computed(context, server, context.size(128, 32), 128, 1),
            "16 tokens computed, prompt of 32": lambda: _computed(context, server, context.size(192, 32), 32, 16),
            "64 tokens computed, prompt of 128 (W)": lambda: _computed(context, server, context.size(64, 16), 128, 64),
        }
        runs: dict[str, list[RunFigures]] = {label: [] for label in measures}
        for _ in context.repeated("service targets"):
            for label, measure in measures.items():
                runs[label].append(summarise(label, _CONCURRENCY, measure(), Goal()))
    arms = tuple(_arm(label, found) for label, found in runs.items())
    settings = {
        "in flight": str(_CONCURRENCY),
        "load generator": (
            "perf_analyzer for kept answers and answers of a token, else AsyncClient; streamed, on the same cores"
        ),
    }
    own = {one.label: one.label for one in arms}  # kinds of requests, not ways to serve the same ones
    return Found(arms, settings, "64 to 3,000 requests by row", tuple(verdict(one) for one in arms), own)


def _workload(context: Context, count: int, prompt_tokens: int, max_tokens: int) -> Workload:
    prompts = exact_prompts(context.tokenizer, count, prompt_tokens, next(context.seeds))
    return Workload("targets", prompts, prompt_tokens, max_tokens)


def _hits(context: Context, server: LocalServer, kept: Workload) -> list[RequestTiming]:
    sweep = Sweep((_CONCURRENCY,), context.size(3_000, 300), cache="only")
    return run_sweep(server.grpc_url, kept, sweep)[_CONCURRENCY]


def _computed(
    context: Context, server: LocalServer, count: int, prompt_tokens: int, max_tokens: int
) -> list[RequestTiming]:
    """Prompts of their own, past the cache."""
    workload = _workload(context, count, prompt_tokens, max_tokens)
    if max_tokens == 1:
        return run_sweep(server.grpc_url, workload, Sweep((_CONCURRENCY,), count))[_CONCURRENCY]
    questions = [Question(prompt, greedy(max_tokens, cache="bypass")) for prompt in workload.prompts]
    return [answer.timing for answer in ask_all(server.grpc_url, questions, _CONCURRENCY)]


def _arm(label: str, runs: Sequence[RunFigures]) -> Arm:
    """Errors are a metric here, so a request that failed does not end the experiment."""
    values = {
        REQUESTS.name: tuple(run.requests_per_second for run in runs),
        LATENCY.name: tuple(run.latency_ms.p50 for run in runs),
        LATENCY_95.name: tuple(run.latency_ms.p95 for run in runs),
        _ERRORS.name: tuple(100 * run.num_errors / run.num_requests for run in runs),
    }
    return Arm(label, values)


def verdict(arm: Arm) -> str:
    """By the medians: all three targets, or those that are missed."""
    missed = []
    if (p95 := _median(arm, LATENCY_95)) > _MAX_P95_MS:
        missed.append(f"p95 is {p95:.0f} ms")
    if (rate := _median(arm, REQUESTS)) < _MIN_RATE:
        missed.append(f"{rate:,.0f} requests/s")
    if (errors := _median(arm, _ERRORS)) >= _MAX_ERRORS:
        missed.append(f"{errors:.1f}% errors")
    return f"{arm.label}: " + (f"not met, {', '.join(missed)}." if missed else "all three are met.")


def _median(arm: Arm, metric: Metric) -> float:
    spread = arm.spread(metric)
    assert spread is not None, "every row has every metric"
    return spread.median
