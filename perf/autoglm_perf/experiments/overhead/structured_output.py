"""What it costs to keep answers to a form: W with and without a guide, in turns, on the same server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from autoglm_client import GenerationOptions

from autoglm_perf.load.load import Question, ask_all, greedy
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found

_METRICS = (TOKENS, REQUESTS, LATENCY, FIRST_TOKEN)
_MIN_SHARE = 0.9
# Nothing that this model says is forbidden but the end of the sequence, and every token is checked: what remains is the
# cost.
_ANY_TEXT = r"(.|\n){4000}"
_STRINGS = '{"type": "array", "minItems": 100, "items": {"type": "string", "maxLength": 30}}'
DESCRIPTION = Description(
    "structured-output",
    "Structured output",
    "Keeping every answer to an expression or a schema costs less than a tenth of the tokens a second.",
    _METRICS,
)


def run(context: Context) -> Found:
    count = context.size(64, 16)
    free = replace(greedy(64, cache="bypass"), prompt_lookup=0)
    sampled = replace(free, temperature=0.8, top_p=0.9, seed=1)
    sides = {
        "free": free,
        "any text, checked": replace(free, ignore_eos=None, guided_regex=_ANY_TEXT),
        "half of them, checked": free,
        "a list of strings as JSON": replace(free, ignore_eos=None, guided_json=_STRINGS),
        "free, sampled": sampled,
        "a list of strings as JSON, sampled": replace(sampled, ignore_eos=None, guided_json=_STRINGS),
    }
    runs: dict[str, list[RunFigures]] = {label: [] for label in sides}
    with context.server() as server:
        for options in sides.values():
            _measure(server.grpc_url, context, "warm", options, 16)
        for _ in context.repeated(", ".join(sides)):
            for label, options in sides.items():
                runs[label].append(_measure(server.grpc_url, context, label, options, count))
    arms = tuple(arm(label, found, _METRICS) for label, found in runs.items())
    settings = {"W": "128 tokens in, 64 out, 16 in flight, no drafts"}
    baselines = {one.label: "free, sampled" if "sampled" in one.label else "free" for one in arms}
    unmet = tuple(filter(None, (_complaint(one, arms, baselines) for one in arms)))
    return Found(arms, settings, f"{count} requests", baselines=baselines, unmet=unmet)


def _complaint(one: Arm, arms: Sequence[Arm], baselines: Mapping[str, str]) -> str | None:
    free = next(other for other in arms if other.label == baselines[one.label])
    share = median(one.values[TOKENS.name]) / median(free.values[TOKENS.name])
    return None if share >= _MIN_SHARE else f"{one.label}: {share:.0%} of the tokens a second, not {_MIN_SHARE:.0%}."


def _measure(url: str, context: Context, label: str, options: GenerationOptions, count: int) -> RunFigures:
    prompts = context.fresh_workload(count).prompts
    guided = replace(options, ignore_eos=None, guided_regex=_ANY_TEXT) if label.startswith("half") else options
    questions = [Question(prompt, guided if at % 2 else options) for at, prompt in enumerate(prompts)]
    return figures(label, 16, [answer.timing for answer in ask_all(url, questions, 16)])
