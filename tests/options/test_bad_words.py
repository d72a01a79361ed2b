"""Words that an answer must not hold: which token is banned when, and that no answer holds one."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.bad_words import BadWords, check_words, word_tokens
from autoglm_engine.sampling.penalties import Penalties
from autoglm_engine.sampling.sampler import TokenSampler
from hypothesis import given
from hypothesis import strategies as st

NO_IDS = np.empty(0, np.int32)
VOCAB = 6
WORDS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)


def spell(text: str) -> list[int]:
    return list(text.encode())


def holds(tokens: list[int], word: tuple[int, ...]) -> bool:
    return any(tuple(tokens[at : at + len(word)]) == word for at in range(len(tokens)))


def test_a_word_of_one_token_is_always_banned() -> None:
    words = BadWords(((3,), (5,)))
    assert words.next_banned() == {3, 5}
    words.count(3)
    assert words.next_banned() == {3, 5}


def test_the_last_token_of_a_longer_word_is_banned_after_the_others() -> None:
    words = BadWords(((1, 2, 3), (2, 4)))
    banned = []
    for token_id in (1, 2, 4, 1, 2, 2):
        banned.append(words.next_banned())
        words.count(token_id)
    assert banned == [set(), set(), {3, 4}, set(), set(), {3, 4}]
    assert words.next_banned() == {4}


def test_a_word_is_spelled_as_in_a_text_and_as_at_its_beginning() -> None:
    assert word_tokens([b"ab"], spell) == (tuple(b"ab"), tuple(b" ab"))
    assert word_tokens([b" ab"], spell) == (tuple(b" ab"),)
    assert word_tokens([b"", b"a"], spell) == word_tokens([b"a"], spell) and not word_tokens([b""], spell)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([b"a"] * 65, "bad_words has 65 words; at most 64 are allowed"),
        ([b"a", b"a" * 257], "bad_words[1] has 257 characters; at most 256 are allowed"),
        ([b"\xff"], "bad_words[0] is not valid UTF-8: byte 0xff at 0"),
    ],
)
def test_a_word_outside_its_limits_is_refused(raw: list[bytes], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        word_tokens(raw, spell)
    assert str(refusal.value) == sentence


def test_a_word_without_a_token_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"bad_words\[0\] encodes to no token"):
        word_tokens(["好".encode()], lambda text: [])


@pytest.mark.parametrize("words", [((),), ((1, VOCAB),), ((-1,),), ((1,) * 1025,), ((1,),) * 129])
def test_the_engine_takes_no_words_that_the_tokenizer_would_not_write(words: tuple[tuple[int, ...], ...]) -> None:
    check_words(((1, 2), (0,)), VOCAB)
    with pytest.raises(InvalidRequest, match="bad_words has"):
        check_words(words, VOCAB)


@given(WORDS, st.integers(0, 2**32 - 1), st.booleans())
def test_no_answer_holds_a_bad_word(words: tuple[tuple[int, ...], ...], seed: int, greedy: bool) -> None:
    """Logits are drawn at random at each step; where everything is banned there is no token."""
    options = SamplingOptions(
        max_tokens=30, temperature=0.0 if greedy else 1.0, seed=seed, bad_words=words, frequency_penalty=0.5
    )
    sampler, random, tokens = TokenSampler(options, NO_IDS, (0,), 30), np.random.default_rng(seed), list[int]()
    for _ in range(30):
        token_id = sampler.sample(random.normal(size=VOCAB).astype(np.float32)).token_id
        if token_id < 0:
            break
        tokens.append(token_id)
        sampler.count(token_id)
    assert not any(holds(tokens, word) for word in words)
    if all(len(word) > 1 for word in words) and len(words) < VOCAB:
        assert len(tokens) == 30


@given(WORDS, st.lists(st.integers(0, VOCAB - 1), max_size=12))
def test_a_device_is_told_what_changed_and_nothing_else(words: tuple[tuple[int, ...], ...], said: list[int]) -> None:
    """What it was told so far is what a row gets."""
    penalties = Penalties(SamplingOptions(max_tokens=12, bad_words=words), NO_IDS, (), 12)
    told = np.zeros(VOCAB, np.float32)
    for token_id in [*said, None]:
        ids, _, offsets = penalties.take_changes()
        told[ids] = offsets
        row = np.ones(VOCAB, np.float32)
        penalties.apply(row)
        assert row.tolist() == (told + 1).tolist()
        if token_id is not None:
            penalties.count(token_id)
