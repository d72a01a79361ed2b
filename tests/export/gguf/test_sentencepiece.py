"""SentencePiece vocabularies of GGUF files encode as sentencepiece itself does; what cannot be one is refused."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.checkpoint.gguf.sentencepiece import MAX_PIECE, Vocabulary, merges_of
from autoglm_export.checkpoint.gguf.tokenizer import build_tokenizer
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.tokenizer_trial import try_tokenizer
from autoglm_export.errors import ExportError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.export.test_gguf import write_gguf
from tests.support.export.plain_checkpoints import SPEC, gguf_tensors

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "sentencepiece.json").read_text())
TOKENS: list[str] = GOLDEN["tokens"]
IDS = {token: index for index, token in enumerate(TOKENS)}
SCORES = {
    token: score for token, score, kind in zip(TOKENS, GOLDEN["scores"], GOLDEN["types"], strict=True) if kind == 1
}
BOS, EOS = IDS["<s>"], IDS["</s>"]


def metadata(**changes: Any) -> dict[str, Any]:
    fields = {"model": "llama", "pre": "default", "bos_token_id": BOS, "eos_token_id": EOS, "unknown_token_id": 0}
    vocabulary = {"tokens": TOKENS, "scores": GOLDEN["scores"], "token_type": GOLDEN["types"]}
    return {f"tokenizer.ggml.{key}": value for key, value in {**fields, **vocabulary, **changes}.items()}


OURS: Tokenizer = build_tokenizer(metadata())


def without_special(text: str) -> bool:
    return not any(token in text for token in ("<end>", "<tool>", "<s>", "</s>", "<unk>"))


@pytest.mark.parametrize("text", [text for text in GOLDEN["texts"] if without_special(text)])
def test_texts_are_encoded_as_sentencepiece_does(text: str) -> None:
    ids = OURS.encode(text, add_special_tokens=False).ids
    assert ids == GOLDEN["texts"][text]
    assert OURS.decode(ids) == text.replace("▁", " ")


def joined_by_score(text: str) -> list[int]:
    """The algorithm as it is written down, without a queue: the best of all neighbours, the leftmost of equal ones."""
    pieces = list(("▁" if text else "") + text.replace(" ", "▁"))
    while True:
        pairs = [
            (-SCORES[left + right], place)
            for place, (left, right) in enumerate(pairwise(pieces))
            if left + right in SCORES
        ]
        if not pairs:
            break
        _, place = min(pairs)
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return [token_id for piece in pieces for token_id in spelled(piece)]


def spelled(piece: str) -> list[int]:
    return [IDS[piece]] if piece in SCORES else [IDS[f"<0x{byte:02X}>"] for byte in piece.encode()]


PARTS = st.sampled_from(
    ["the ", " token", "aa", "a", "  ", "\n", "12", "é", "你好", "世界", "😀", "<0x0A>", "▁", "abab", "ing", "в"]
)
TEXTS = st.lists(PARTS | st.characters(codec="utf-8"), max_size=20).map("".join)


@settings(max_examples=400)
@given(TEXTS.filter(without_special))
def test_random_texts_are_joined_by_score_and_come_back(text: str) -> None:
    ids = OURS.encode(text, add_special_tokens=False).ids
    assert ids == joined_by_score(text)
    assert OURS.decode(ids) == text.replace("▁", " ")
    assert streamed(OURS, ids) == OURS.decode(ids)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = TokenText(tokenizer)
    stream = text.stream()
    groups = [group for token_id in ids if (group := stream.push(token_id))]
    return "".join(text.decode(group, index == 0) for index, group in enumerate([*groups, stream.flush()]) if group)


@pytest.mark.parity
def test_transformers_reads_the_same_ids_from_the_file(tmp_path: Path) -> None:
    """But for a text that begins with a space: transformers' prefix is one only where there is none."""
    from transformers import AutoTokenizer

    path = tmp_path / "m.gguf"
    write_sentencepiece(path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    read = Tokenizer.from_str(open_checkpoint(path).tokenizer.decode())
    texts = [text for text in GOLDEN["texts"] if without_special(text) and not text.startswith((" ", "▁"))]
    assert len(texts) > 60
    for text in texts:
        assert read.encode(text).ids == theirs(text).input_ids, text


def write_sentencepiece(path: Path, **changes: Any) -> None:
    spec = dataclasses.replace(SPEC, vocab_size=len(TOKENS), num_heads=4, num_kv_heads=2)
    write_gguf(path, spec, gguf_tensors(spec), extra=metadata(**changes))


def test_special_tokens_are_matched_in_the_text() -> None:
    """As llama.cpp does it, a space stands behind each."""
    assert OURS.encode("a<end>a the<tool>the").tokens == ["<s>", "▁a", "<end>", "▁a", "▁the", "<tool>", "▁the"]
    assert OURS.decode([IDS["▁a"], IDS["<end>"], IDS["<tool>"]]) == "a<tool>"
    assert OURS.encode("a<unk>b").tokens == ["<s>", "▁a", "<unk>", "▁", "b"]
    assert OURS.encode("").ids == [BOS]


def test_flags_of_the_file_are_followed() -> None:
    plain = build_tokenizer(metadata(add_space_prefix=False, add_bos_token=False))
    assert plain.encode("the end").tokens[0] != "▁the"
    assert plain.encode("").ids == []
    for text in (" two", "two", "  ", "a  b "):
        assert plain.decode(plain.encode(text).ids) == text


def test_a_tokenizer_json_of_it_passes_the_trial() -> None:
    try_tokenizer(OURS.to_str().encode())


def test_a_merge_list_in_the_file_goes_first() -> None:
    merges = [
        f"{left} {right}" for left, right in merges_of(Vocabulary(TOKENS, GOLDEN["scores"], GOLDEN["types"], "<unk>"))
    ]
    given = build_tokenizer(metadata(merges=merges, scores=[0.0] * len(TOKENS)))
    assert given.encode("the phone screen").ids == OURS.encode("the phone screen").ids


def test_without_byte_tokens_the_unknown_token_stands_for_what_has_no_piece() -> None:
    types = [1 if kind == 6 else kind for kind in GOLDEN["types"]]
    tokens = [token.replace("<0x", "<0y") for token in TOKENS]
    assert build_tokenizer(metadata(tokens=tokens, token_type=types)).encode("a☃✓").tokens == ["<s>", "▁a", "<unk>"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "equal scores": ({"scores": [-1000.0] * len(TOKENS)}, "all tokenizer.ggml.scores are -1000"),
    "few scores": ({"scores": [1.0]}, f"has 1 tokenizer.ggml.scores, and {len(TOKENS)} tokens"),
    "no scores": ({"scores": "none"}, "has 0 tokenizer.ggml.scores"),
    "no number": ({"scores": [float("nan")] * len(TOKENS)}, "tokenizer.ggml.scores must be finite numbers"),
    "no types": ({"token_type": []}, f"has 0 tokenizer.ggml.token_type, and {len(TOKENS)} tokens"),
    "no tokens": ({"tokens": []}, "lacks tokenizer.ggml.tokens"),
    "numbers": ({"tokens": [1, 2]}, "lacks tokenizer.ggml.tokens"),
    "a long piece": ({"tokens": [*TOKENS[:-1], "a" * (MAX_PIECE + 1)]}, "a piece of 513 characters; most is 512"),
    "unknown": ({"unknown_token_id": 560}, "unknown_token_id is 560; the tokenizer's ids are 0 ... 559"),
    "bos": ({"bos_token_id": -1}, "bos_token_id is -1; the tokenizer's ids are 0 ... 559"),
    "prefix": ({"add_space_prefix": "yes"}, "add_space_prefix is 'yes'; it must be true or false"),
    "normaliser": ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap is set"),
    "spaces": ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is set"),
    "merge": ({"merges": ["a"]}, "its merge 'a' is no pair"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_vocabulary_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ExportError) as caught:
        build_tokenizer(metadata(**changes))
    assert message in str(caught.value)
