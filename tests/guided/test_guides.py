"""Structured output: whatever is chosen among the allowed tokens keeps to the schema, expression or grammar."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import FinishReason, Request, SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.guided.compiler import GuideFailed
from autoglm_engine.guided.grammar import GuideCompiler, GuideState
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.checkpoint import bundled
from autoglm_export.checkpoint.opening import open_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from tests.support.engine.engine_bench import NUM_CANDIDATES, Bench
from tests.support.engine.fakes import answers, request
from tests.support.engine.random_guides import REGEXES, SCHEMAS, Schema, check_json, check_regex

pytestmark = pytest.mark.slow

VOCAB, END = 49_152, 2
PATIENCE, MAX_TOKENS = 10, 500
SLOW = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@cache
def tokenizer_json() -> str:
    """SmolLM2's."""
    path, name = bundled.resolve("smollm2")
    return open_checkpoint(path, name=name).tokenizer.decode()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


@cache
def guides() -> GuideCompiler:
    return GuideCompiler(lambda: LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])


def guided(**options: object) -> SamplingOptions:
    return SamplingOptions(max_tokens=MAX_TOKENS, **options)  # type: ignore[arg-type]


def begun(**options: object) -> GuideState:
    guide = guides().compile(guided(**options))
    assert guide is not None
    return guide.begin()


def walked(guide: GuideState, draw: random.Random) -> str | None:
    """A text of random allowed tokens, of late ones the shortest; None where it has no end within MAX_TOKENS."""
    ids: list[int] = []
    for place in range(MAX_TOKENS):
        allowed = np.flatnonzero(guide.allowed())
        assert len(allowed), f"nothing may follow {tokenizer().decode(ids)!r}"
        token_id = int(draw.choice(_likely(allowed, place)))
        if forced := guide.forced():
            assert forced[0] in allowed
        assert guide.allows(token_id) and guide.allows(END) == (END in allowed)
        if token_id == END:
            return tokenizer().decode(ids, skip_special_tokens=False)
        guide.count(token_id)
        ids.append(token_id)
    return None


def _likely(allowed: npt.NDArray[np.intp], place: int) -> npt.NDArray[np.intp]:
    """Those that a walk chooses from when it has `place` tokens."""
    if place <= PATIENCE:
        return allowed
    return np.array([END]) if END in allowed else allowed[np.argsort(_by_brevity()[allowed])[:6]]


@cache
def _by_brevity() -> npt.NDArray[np.intp]:
    """`[VOCAB]`: the place of each token, the shortest first."""
    return np.argsort(sorted(range(VOCAB), key=_brevity))


def _brevity(token_id: int) -> tuple[bool, int]:
    """What closes something comes first."""
    text = tokenizer().decode([token_id], skip_special_tokens=False)
    return text not in ('"', "}", "]", '"}', '"]', ",", ">", ")", "<"), len(text)


@SLOW
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_random_tokens_that_a_schema_allows_are_an_instance_of_it(schema: Schema, draw: random.Random) -> None:
    try:
        guide = begun(guided_json=json.dumps(schema))
    except InvalidRequest as error:
        assert "unsatisfiable" in str(error).lower(), error
        return
    if (text := walked(guide, draw)) is not None:
        check_json(schema, text)


@SLOW
@given(REGEXES, st.randoms(use_true_random=False))
def test_random_tokens_that_an_expression_allows_match_it(pattern: str, draw: random.Random) -> None:
    if (text := walked(begun(guided_regex=pattern), draw)) is not None:
        check_regex(pattern, text)


def parsed(call: str) -> tuple[str, dict[str, Any]]:
    """(function, arguments), as the agent reads an action: what is typed, and the message, as they stand, the rest as
    Python."""
    function = call.partition("(")[0]
    for beginning, name in (('do(action="Type"', "text"), ('do(action="Type_Name"', "text"), ("finish(", "message")):
        if call.startswith(beginning):
            typed = {name: call.split(f"{name}=", 1)[1][1:-2]}
            return function, typed if function == "finish" else {"action": "Type", **typed}
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call) and not tree.args
    return function, {word.arg or "": ast.literal_eval(word.value) for word in tree.keywords}


def actions(content: str) -> set[str]:
    """Of releases of the agent, which look for the action in different orders."""
    older = [mark + content.split(mark, 1)[1] for mark in ("finish(message=", "do(action=") if mark in content][:1]
    newer = content.split("<answer>", 1)[1].replace("</answer>", "").strip() if "<answer>" in content else older[0]
    return {older[0], newer}


@pytest.mark.parametrize("seed", range(20))
def test_the_ready_grammar_leaves_only_what_open_autoglm_reads(seed: int) -> None:
    text = walked(begun(guided_grammar="open-autoglm"), random.Random(seed))
    assert text is not None
    (call,) = actions(text)
    function, values = parsed(call)
    assert text.endswith(call) and (function, next(iter(values))) in {("finish", "message"), ("do", "action")}
    points = [values[name] for name in ("element", "start", "end") if name in values]
    assert all(len(point) == 2 and 0 <= min(point) <= max(point) <= 999 for point in points)


@pytest.mark.parametrize(
    ("call", "is_action"),
    [
        ('do(action="Tap", element=[499,12])', True),
        ('do(action="Tap", element=[1,2], message="支付")', True),
        ('<think>要先打开微信</think>\ndo(action="Launch", app="微信")', True),
        ('<think>done</think>finish(message="完成 (ok)")', True),
        ('do(action="Note", message="say \\"hi\\"")', True),
        ('do(action="Swipe", start=[1,2], end=[3,4])', True),
        ('do(action="Wait", duration="3 seconds")', True),
        ('do(action="Type", text="say \\"hi\\"")', False),
        ('do(action="Call_API", instruction="then finish(message=ok")', False),
        ('<think>I can do(action="Tap") now</think>do(action="Home")', False),
        ('<think>x</think>\n<answer>do(action="Home")</answer>', False),
        ('do(action="Tap", element=[1000,12])', False),
        ('do(action="Jump")', False),
        ('do(action="Back"', False),
        ("I would tap there.", False),
    ],
)
def test_the_ready_grammar_knows_the_actions(call: str, is_action: bool) -> None:
    guide = begun(guided_grammar="open-autoglm")
    for token_id in tokenizer().encode(call, add_special_tokens=False).ids:
        if not guide.allows(token_id):
            assert not is_action, f"{tokenizer().decode([token_id])!r} of {call!r}"
            return
        guide.count(token_id)
    assert bool(guide.allowed()[END]) == is_action


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guided_json": '{"type": "nothing"}'}, "guided_json cannot be compiled"),
        ({"guided_json": '{"type": "object", "patternProperties": 3}'}, "guided_json cannot be compiled"),
        ({"guided_regex": "(a"}, "guided_regex cannot be compiled"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar cannot be compiled"),
        ({"guided_regex": "(" * 5000 + ")" * 5000}, "guided_regex cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_sentence(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        guides().compile(guided(**options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_equal_guides_are_compiled_once_and_the_oldest_is_forgotten() -> None:
    own = GuideCompiler(lambda: LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])
    first = own.compile(guided(guided_regex="a"))
    assert own.compile(guided(guided_regex="a", temperature=1.0)) is first
    for number in range(64):
        own.compile(guided(guided_regex=f"b{number}"))
    assert own.compile(guided(guided_regex="a")) is not first and own.compile(guided()) is None


# ---- in the engine

LIMITS = Limits(num_slots=4, max_length=256, prefill_chunk=64, vocab_size=VOCAB)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["colour", "n"],
        "additionalProperties": False,
    }
)


def test_what_one_tenant_had_compiled_is_compiled_again_for_another() -> None:
    """Else the time that it takes would tell that somebody had asked for it."""
    own = GuideCompiler(lambda: LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])
    first = own.compile(guided(guided_regex="a"), "one")
    assert own.compile(guided(guided_regex="a"), "other") is not first
    assert own.compile(guided(guided_regex="a"), "one") is first


def bench(num_candidates: int, chosen: EngineSettings | None = None, **limits: int) -> Bench:
    limited = replace(LIMITS, **limits)
    return Bench(num_candidates, limited, chosen or plain_settings(), text=TokenText(tokenizer()), eos=(END,))


def asked(name: str, **options: object) -> Request:
    made = request(name, [1, 2, len(name), *name.encode()], max_tokens=40, **options)
    return replace(made, guide=guides().compile(made.sampling))


def crowd() -> list[Request]:
    guided_ones: list[dict[str, object]] = [
        {"guided_json": SCHEMA},
        {"guided_json": SCHEMA, "temperature": 1.0, "seed": 3},
        {"guided_regex": "(red|green)( [0-9]{2}){1,3}", "frequency_penalty": 0.5},
        {"guided_json": SCHEMA, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 9},
        {"guided_regex": "[a-f]{8}", "logprobs": 2},
    ]
    free: list[dict[str, object]] = [{}, {"temperature": 1.0, "seed": 1}, {"logit_bias": ((77, 100.0),)}]
    return [asked(f"r{number}", **options) for number, options in enumerate(guided_ones + free)]


@pytest.mark.parametrize("num_candidates", NUM_CANDIDATES)
def test_guided_and_free_requests_in_one_batch_answer_as_alone(num_candidates: int) -> None:
    together = bench(num_candidates)
    together.run(*crowd())
    found = answers(together.events)
    text = TokenText(tokenizer())
    for one in crowd():
        alone = bench(0)
        alone.run(one)
        assert found[one.id].token_ids == answers(alone.events)[one.id].token_ids
    for name in ("r0", "r1", "r3"):
        assert found[name].last.finish_reason is FinishReason.STOP
        check_json(json.loads(SCHEMA), found[name].text(text))
    check_regex("(red|green)( [0-9]{2}){1,3}", found["r2"].text(text))
    assert 77 in found["r7"].token_ids


def test_drafts_change_no_guided_answer() -> None:
    plain, drafting = bench(0), bench(0, plain_settings(speculation="on"), max_logits_per_span=8)
    plain.run(*crowd())
    drafting.run(*crowd())
    expected = answers(plain.events)
    assert {name: answer.token_ids for name, answer in answers(drafting.events).items()} == {
        name: answer.token_ids for name, answer in expected.items()
    }
    assert drafting.engine.stats.drafts_accepted and drafting.engine.stats.steps < plain.engine.stats.steps


def test_a_guide_that_fails_ends_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[[GuideState], object] = GuideState.allowed

    def allowed(self: GuideState) -> object:
        if not self.allows(tokenizer().token_to_id("b")):
            return original(self)
        raise GuideFailed("the guide of this request cannot go on: too many states")

    monkeypatch.setattr(GuideState, "allowed", allowed)
    crowded = bench(0)
    crowded.run(asked("bad", guided_regex="b{3}"), asked("good", guided_regex="a{3}"), asked("free"))
    found = answers(crowded.events)
    assert "too many states" in (found["bad"].last.error or "") and found["bad"].last.error_code == "INVALID_ARG"
    assert (
        found["good"].text(TokenText(tokenizer())) == "aaa" and found["free"].last.finish_reason is FinishReason.LENGTH
    )
    crowded.assert_idle()


@pytest.mark.parametrize(
    "guide",
    [
        {"guided_grammar": "start: start"},
        {"guided_json": '{"$ref": "#"}'},
        {"guided_json": '{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}'},
    ],
)
def test_a_guide_that_leaves_nothing_is_the_callers_fault(guide: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^the guide of this request cannot go on: nothing may come next$"):
        asked("empty", **guide)
