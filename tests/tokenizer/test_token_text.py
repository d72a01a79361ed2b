"""The groups' texts joined equal the one-shot decode, for every token sequence, on three kinds of tokenizer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.checkpoint import bundled
from autoglm_export.checkpoint.opening import open_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.support.engine.byte_tokenizers import byte_fallback
from tests.support.engine.fakes import letters_tokenizer


@pytest.fixture(scope="module")
def real_tokenizer() -> Tokenizer:
    """SmolLM2's."""
    path, name = bundled.resolve("smollm2")
    return Tokenizer.from_str(open_checkpoint(path, name=name).tokenizer.decode())


def with_decoder(decoder: object) -> Tokenizer:
    words = ["a", "b", "##ing", "▁a", "▁", "▁b▁", "new", ".", "n't", "'s"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def groups_of(text: TokenText, token_ids: list[int]) -> list[tuple[int, ...]]:
    stream = text.stream()
    groups = [group for token_id in token_ids if (group := stream.push(token_id))]
    return [*groups, last] if (last := stream.flush()) else groups


def check(tokenizer: Tokenizer, text: TokenText, token_ids: list[int]) -> list[tuple[int, ...]]:
    groups = groups_of(text, token_ids)
    assert [token_id for group in groups for token_id in group] == token_ids
    pieces = [text.decode(group, i == 0) for i, group in enumerate(groups)]
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)
    if text._bytes:
        assert pieces == [tokenizer.decode(list(group), skip_special_tokens=True) for group in groups]
    return groups


@pytest.mark.parametrize("part", range(4))
@pytest.mark.slow
def test_a_thousand_random_sequences_of_the_real_tokenizer(real_tokenizer: Tokenizer, part: int) -> None:
    text = TokenText(real_tokenizer)
    num_ids = real_tokenizer.get_vocab_size()
    broken = [i for i in range(num_ids) if "\ufffd" in real_tokenizer.decode([i])]
    assert len(broken) > 100
    random = np.random.default_rng(part)
    for number in range(250):
        pool = broken if number % 2 else range(num_ids + 5)  # half of them bytes that rarely fit together
        check(real_tokenizer, text, random.choice(pool, int(random.integers(1, 40))).tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sentence", ["你好，世界！今天天气怎么样？", "👩‍👩‍👧‍👦 family 🏳️‍🌈 ok", "naïve café — “quoted”", "a\n\n  b\t"]
)
def test_characters_stay_whole(real_tokenizer: Tokenizer, sentence: str) -> None:
    token_ids = real_tokenizer.encode(sentence).ids
    groups = check(real_tokenizer, TokenText(real_tokenizer), token_ids)
    for group in groups:
        assert "\ufffd" not in real_tokenizer.decode(list(group))
    assert len(groups) >= len(token_ids) / 4


def test_a_plain_token_goes_at_once_and_a_half_character_waits() -> None:
    tokenizer = letters_tokenizer()
    stream = TokenText(tokenizer).stream()
    a, lead, rest, end = (tokenizer.token_to_id(token) for token in ("a", "Ã", "©", "<|end|>"))
    assert stream.push(a) == (a,)
    assert stream.push(lead) == ()
    assert stream.push(end) == ()  # leaves no text, so it decides nothing
    assert stream.push(rest) == (lead, end, rest)
    assert stream.push(rest) == (rest,)  # a byte that can begin nothing
    assert stream.push(lead) == ()
    assert stream.push(a) == (lead, a)
    assert stream.flush() == ()


BYTES = st.lists(
    st.sampled_from(
        [
            0x41,
            0x7F,
            0x80,
            0x8F,
            0x90,
            0x9F,
            0xA0,
            0xBF,
            0xC0,
            0xC2,
            0xDF,
            0xE0,
            0xE4,
            0xED,
            0xEF,
            0xF0,
            0xF1,
            0xF4,
            0xF5,
            0xFF,
        ]
    ),
    max_size=12,
)


@cache
def all_bytes() -> tuple[Tokenizer, TokenText, list[int]]:
    """A byte-level tokenizer whose tokens are the 256 bytes; the third: each byte's token."""
    shifted = [byte for byte in range(256) if byte not in {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}]
    letters = [chr(0x100 + shifted.index(byte)) if byte in shifted else chr(byte) for byte in range(256)]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, TokenText(tokenizer), list(range(256))


@settings(max_examples=400, deadline=None)
@given(BYTES)
@pytest.mark.slow
def test_any_bytes(values: list[int]) -> None:
    tokenizer, text, ids = all_bytes()
    groups = check(tokenizer, text, [ids[value] for value in values])
    whole = bytes(values).decode("utf-8", "replace")
    assert len(groups) <= len(whole)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 275), max_size=20))
@pytest.mark.slow
def test_byte_fallback(token_ids: list[int]) -> None:
    check(byte_fallback(), byte_fallback_text(), token_ids)


@settings(max_examples=200, deadline=None)
@given(BYTES, st.lists(st.integers(259, 272), max_size=3))
def test_byte_fallback_runs(values: list[int], words: list[int]) -> None:
    check(byte_fallback(), byte_fallback_text(), [*words, *(3 + value for value in values), *words])


@cache
def byte_fallback_text() -> TokenText:
    return TokenText(byte_fallback())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.WordPiece(cleanup=False),
        decoders.Metaspace(),
        decoders.Metaspace(prepend_scheme="never"),
    ],
    ids=str,
)
def test_other_decoders(decoder: object) -> None:
    tokenizer = with_decoder(decoder)
    text = TokenText(tokenizer)
    random = np.random.default_rng(0)
    for _ in range(200):
        check(tokenizer, text, random.integers(0, 12, int(random.integers(0, 9))).tolist())


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), "Replace"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "strips 0 characters from the start and 1"),
    ],
    ids=str,
)
def test_a_decoder_whose_text_cannot_be_cut_is_refused(decoder: object, named: str) -> None:
    with pytest.raises(ArtifactError, match=named):
        TokenText(with_decoder(decoder))


def test_a_tokenizer_without_a_word_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({".": 0}, unk_token="."))
    with pytest.raises(ArtifactError, match="no token that is a plain word"):
        TokenText(tokenizer)
