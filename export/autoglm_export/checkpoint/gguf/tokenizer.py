"""Rebuilds tokenizer.json from the metadata of a GGUF file.

Of byte-level BPE, GGUF names the pre-tokenizer (`tokenizer.ggml.pre`); its split pattern is part of the model, not of
the file. The patterns below are those of the published tokenizer.json files of the models that the names stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoglm_export.checkpoint.generation.end_tokens import KNOWN_ENDS, Metadata
from autoglm_export.errors import CheckpointError, UnsupportedModel

from .sentencepiece import TokenType, numbers_of, sentencepiece_tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Mistral's: words begin with capitals, and may end in small letters.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = (
    rf"{_BEFORE}{_CAPITALS}*{_SMALL}+|{_BEFORE}{_CAPITALS}+{_SMALL}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """`pattern` None: GPT-2's own split, after every digit was set apart."""

    pattern: str | None
    normalise: bool = False  # to NFC
    ignore_merges: bool = False  # a piece that is a token stays whole
    adds_bos: bool = False  # unless the file says otherwise


QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
LLAMA3 = PreTokenizer(pattern=rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}", ignore_merges=True, adds_bos=True)
PRE_TOKENIZERS = {
    "smollm": PreTokenizer(pattern=None),
    "qwen2": PreTokenizer(pattern=QWEN2, normalise=True),
    "deepseek-r1-qwen": PreTokenizer(pattern=QWEN2),  # not normalised, as llama.cpp and transformers read it
    "llama-bpe": LLAMA3,
    "llama-v3": LLAMA3,
    "llama3": LLAMA3,
    "tekken": PreTokenizer(pattern=TEKKEN, ignore_merges=True, adds_bos=True),
    "glm4": PreTokenizer(pattern=LLAMA3.pattern),
    "chatglm-bpe": PreTokenizer(pattern=LLAMA3.pattern),
}


def build_tokenizer(metadata: Metadata) -> Any:
    """A `tokenizers.Tokenizer`. Raises UnsupportedModel for a tokenizer that is no BPE known here."""
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        tokenizer, adds_bos = sentencepiece_tokenizer(metadata), True
    elif model == "gpt2":
        pre = _pre_tokenizer_named(metadata)
        tokenizer, adds_bos = _byte_level_tokenizer(metadata, pre), pre.adds_bos
    else:
        raise UnsupportedModel(
            f"the GGUF tokenizer model is {model!r}; supported are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)"
        )
    tokens = _list(metadata, "tokenizer.ggml.tokens")
    _check_distinct(tokens)
    _add_special_tokens(tokenizer, tokens, _types(metadata, len(tokens)))
    _add_bos(tokenizer, tokens, metadata, adds_bos)
    return tokenizer


def _pre_tokenizer_named(metadata: Metadata) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModel(f"the GGUF pre-tokenizer is {name!r}; supported are {', '.join(PRE_TOKENIZERS)}")
    if metadata.get("tokenizer.ggml.add_space_prefix", False):
        raise UnsupportedModel("tokenizer.ggml.add_space_prefix is true; byte-level BPE models have false")
    return PRE_TOKENIZERS[name]


def _byte_level_tokenizer(metadata: Metadata, pre: PreTokenizer) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    tokens = _list(metadata, "tokenizer.ggml.tokens")
    merges = [_pair(merge) for merge in _list(metadata, "tokenizer.ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"the GGUF tokenizer is damaged: {error}") from None
    if pre.normalise:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _list(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise CheckpointError(f"the GGUF file lacks {key}, a list of texts")
    return value


def _check_distinct(tokens: list[str]) -> None:
    """Of two ids with one text, the first would mean nothing any more; of those without a text it does not matter."""
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token and (first := ids.setdefault(token, index)) != index:
            raise CheckpointError(
                f"the GGUF tokenizer is damaged: its tokens {first} and {index} are both {token!r:.40}"
            )


def _types(metadata: Metadata, count: int) -> list[int]:
    if metadata.get("tokenizer.ggml.token_type") is None:
        return [TokenType.NORMAL] * count
    return numbers_of(metadata, "token_type", count)


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not (left and separator and right):
        raise CheckpointError(f"the GGUF tokenizer is damaged: its merge {merge!r} is no pair")
    return left, right


def _pre_tokenizer(pre: PreTokenizer) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre.pattern is None:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    split = Split(Regex(pre.pattern), behavior="isolated")
    return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_special_tokens(tokenizer: Any, tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    added = []
    for token, kind in zip(tokens, types, strict=True):
        # As in llama.cpp, which knows ends whatever the file calls them.
        is_control = kind in (TokenType.CONTROL, TokenType.UNKNOWN) or token in KNOWN_ENDS
        if is_control or kind == TokenType.USER_DEFINED:
            added.append(AddedToken(token, special=is_control, normalized=False))
    tokenizer.add_tokens(added)  # at once: each call makes the search for all of them anew


def _add_bos(tokenizer: Any, tokens: list[str], metadata: Metadata, by_default: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", by_default):
        return
    if not isinstance(bos, int) or not 0 <= bos < len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.bos_token_id is {bos!r:.40}; the tokenizer's ids are 0 ... {len(tokens) - 1}"
        )
    token = tokens[bos]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, bos)]
    )
