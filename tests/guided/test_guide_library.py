"""What a caller may send to be compiled, and cannot hurt others with."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.guided.grammar import GuideCompiler
from autoglm_engine.guided.presets import OPEN_AUTOGLM, with_marks
from autoglm_engine.sampling.row_ops import at_least, most_likely
from autoglm_engine.sampling.sampler import TokenSampler
from llguidance import LLTokenizer

from tests.guided.test_guides import END, VOCAB, guided, guides, tokenizer, tokenizer_json

pytestmark = pytest.mark.slow


def chain_of_references(links: int) -> str:
    parts: dict[str, Any] = {str(n): {"properties": {"a": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(links)}
    return json.dumps({"$ref": "#/$defs/0", "$defs": {**parts, str(links): {"type": "null"}}}, separators=(",", ":"))


def chain_of_choices(links: int) -> str:
    parts: dict[str, Any] = {str(n): {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{n + 1}"}]} for n in range(links)}
    return json.dumps({"$ref": "#/$defs/0", "$defs": {**parts, str(links): {"type": "null"}}}, separators=(",", ":"))


def chain_of_rules(links: int) -> str:
    rules = [f'r{n}: "a" r{n + 1}' for n in range(links)]
    return "\n".join(["start: r0", *rules, f'r{links}: "b"'])


@pytest.mark.parametrize(
    "options",
    [
        {"guided_json": chain_of_references(1300)},
        {"guided_json": chain_of_choices(1300)},
        {"guided_grammar": chain_of_rules(4000)},
    ],
)
def test_a_long_chain_does_not_overflow_the_stack(options: dict[str, str]) -> None:
    """On a thread of the usual size each of these ends the process."""
    assert 50_000 < len(next(iter(options.values()))) < 80_000
    guide = guides().compile(guided(**options))
    assert guide is not None and guide.begin().allowed().any()


def test_an_ambiguous_grammar_ends_itself_before_it_stalls_others() -> None:
    guide = guides().compile(guided(guided_grammar='start: s\ns: s s s | s s | "a" | "a" "a"'))
    assert guide is not None
    state, token_id = guide.begin(), tokenizer().encode("a").ids[0]
    taken = 0
    while taken < 200 and state.allows(token_id):
        state.count(token_id)
        taken += 1
    assert taken < 100  # without the bound it goes on, and each further one takes longer


def test_looking_ahead_changes_no_answer() -> None:
    """Its cost is not the answer's own."""
    options = {"guided_regex": "(.*(a|b)){1,8}.*([ab].{500}){1,100}"}
    token_id = tokenizer().encode("a").ids[0]

    def taken(*, looks: bool) -> int:
        own = GuideCompiler(lambda: LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])
        guide = own.compile(guided(**options))
        assert guide is not None
        state, count = guide.begin(), 0
        while count < 20 and state.allows(token_id):
            if looks:
                state.forced()
            state.count(token_id)
            count += 1
        return count

    assert taken(looks=True) == taken(looks=False) == 20


def test_a_tokenizer_that_the_library_refuses_is_said_in_one_sentence() -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(tokenizer_json())
        own = GuideCompiler.of(Path(folder), 10, [END])
        with pytest.raises(InvalidRequest, match="no structured output with this model's tokenizer"):
            own.compile(guided(guided_regex="a"))


def test_what_is_kept_is_bounded_by_the_length_of_texts() -> None:
    own = GuideCompiler(lambda: LLTokenizer(tokenizer_json(), n_vocab=VOCAB, eos_token=[END]), VOCAB, [END])
    first = own.compile(guided(guided_regex="a" * 60_000))
    assert own.compile(guided(guided_regex="a" * 60_000)) is first
    for letter in "bcdefghij":
        own.compile(guided(guided_regex=letter * 60_000))
    assert own.compile(guided(guided_regex="a" * 60_000)) is not first


def test_marks_are_single_tokens_where_the_model_has_them() -> None:
    ids = {"<think>": [7], "</think>": [8]}
    assert "<[7]> THOUGHT <[8]>" in with_marks(OPEN_AUTOGLM, ids.__getitem__)
    assert '"<think>" THOUGHT "</think>"' in with_marks(OPEN_AUTOGLM, lambda mark: [1, 2, 3])


@pytest.mark.parametrize("options", [{"top_k": 50}, {"top_p": 0.85}, {"min_p": 0.1}, {"top_k": 5, "top_p": 0.5}])
@pytest.mark.parametrize("num_allowed", [1, 3, 100, 5000])
def test_a_draw_among_few_allowed_tokens_is_the_one_from_them_alone(options: dict[str, Any], num_allowed: int) -> None:
    """As if the others were there, and unlikely beyond measure."""
    random = np.random.default_rng(num_allowed)
    row = random.normal(size=20_000).astype(np.float32)
    allowed = np.sort(random.choice(20_000, num_allowed, replace=False))
    masked = np.full_like(row, -np.inf)
    masked[allowed] = row[allowed]
    unlikely = np.where(np.isfinite(masked), masked, np.float32(-1e30))
    for seed in range(5):
        sampling = SamplingOptions(max_tokens=8, temperature=0.9, seed=seed, **options)
        prompt = np.zeros(1, np.int32)
        one = TokenSampler(sampling, prompt, [END], 8).sample(masked).token_id
        assert one in allowed
        assert one == TokenSampler(sampling, prompt, [END], 8).sample(unlikely).token_id
    assert set(most_likely(masked, 50)) <= set(allowed.tolist()) and len(at_least(masked, -np.inf)) == num_allowed
