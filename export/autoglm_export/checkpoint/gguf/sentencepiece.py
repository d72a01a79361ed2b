"""tokenizer.json of a SentencePiece vocabulary in a GGUF file (`tokenizer.ggml.model` llama).

SentencePiece's BPE joins, of all neighbours that form a piece, those whose piece scores highest, the leftmost first
(bpe_model.cc). The tokenizers library joins pairs in a fixed order instead; here that of the scores, and of one piece
the pair with the longer left part first, as transformers derives it (`generate_merges`). Characters without a piece
become bytes. A space stands before every text, and behind every special token, unless `add_space_prefix` is false: so
does llama.cpp (`llama_vocab::impl::tokenize`), and so do the published tokenizer.json files of such models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import Any

from autoglm_export.checkpoint.generation.end_tokens import Metadata
from autoglm_export.errors import CheckpointError, UnsupportedModel

SPACE = "▁"
MAX_PIECE = 512  # characters: each place of a piece may be one where two others meet
_PREFIX = "tokenizer.ggml."
_NORMALISERS = ("precompiled_charsmap", "remove_extra_whitespaces")  # of texts, before they are encoded


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`. All but normal, unused and byte tokens are matched in the text before it is
    encoded."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unknown: str


def sentencepiece_tokenizer(metadata: Metadata) -> Any:
    """A `tokenizers.Tokenizer` without special tokens. Raises CheckpointError for a vocabulary that cannot be one."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    vocabulary = read_vocabulary(metadata)
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        bpe = BPE(
            vocab=vocab,
            merges=_given_merges(metadata) or merges_of(vocabulary),
            unk_token=vocabulary.unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
        tokenizer = Tokenizer(bpe)
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"the GGUF tokenizer is damaged: {error}") from None
    has_prefix = _flag(metadata, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if has_prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    for key in _NORMALISERS:
        if metadata.get(_PREFIX + key):
            raise UnsupportedModel(f"{_PREFIX}{key} is set: texts would have to be normalised before they are encoded")
    tokens = metadata.get(_PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"the GGUF file lacks {_PREFIX}tokens")
    scores, types = (numbers_of(metadata, key, len(tokens)) for key in ("scores", "token_type"))
    unknown = metadata.get(_PREFIX + "unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        raise CheckpointError(
            f"{_PREFIX}unknown_token_id is {unknown!r:.40}; the tokenizer's ids are 0 ... {len(tokens) - 1}"
        )
    return Vocabulary(tokens, scores, types, tokens[unknown])


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, best first."""
    scores = {
        token: score
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True)
        if kind == TokenType.NORMAL
    }
    long = {token for token in scores if len(token) > 1}
    if len(long) > 1 and len({scores[token] for token in long}) == 1:
        raise UnsupportedModel(
            f"all {_PREFIX}scores are {scores[long.pop()]:g}: the file was made without the order of its pieces"
        )
    pairs = [(-scores[left + right], -len(left), left, right) for left, right in _pairs(scores)]
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _pairs(pieces: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for piece in pieces:
        if len(piece) > MAX_PIECE:
            raise CheckpointError(f"the GGUF tokenizer has a piece of {len(piece)} characters; most is {MAX_PIECE}")
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in pieces and right in pieces:
                yield left, right


def _given_merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges = metadata.get(_PREFIX + "merges", [])
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise CheckpointError(f"the GGUF file's {_PREFIX}merges must be a list of texts")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if wrong := next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None):
        raise CheckpointError(f"the GGUF tokenizer is damaged: its merge {wrong!r:.60} is no pair")
    return [(left, right) for left, right in pairs]


def numbers_of(metadata: Metadata, key: str, count: int) -> list[Any]:
    """One for each of `count` tokens. Raises CheckpointError."""
    values = metadata.get(_PREFIX + key)
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else 0
        raise CheckpointError(f"the GGUF file has {found} {_PREFIX}{key}, and {count} tokens")
    if not all(isinstance(value, int | float) and isfinite(value) for value in values):
        raise CheckpointError(f"the GGUF file's {_PREFIX}{key} must be finite numbers")
    return values


def _flag(metadata: Metadata, key: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{_PREFIX}{key} is {value!r:.40}; it must be true or false")
    return value
