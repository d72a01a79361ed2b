"""Tokenizers that spell a character by several tokens, and what an answer of theirs must show of a stop string."""

from __future__ import annotations

from functools import cache

from autoglm_engine.tokenizer.incremental import TokenText
from tokenizers import AddedToken, Tokenizer, decoders, models

from tests.support.engine.fakes import byte_tokenizer

BYTE_FALLBACK_WORDS = ["▁", "▁the", "▁a", "a", "b", "é", "好", "▁▁", ".", ",", "ing", "▁好"]


@cache
def byte_fallback() -> Tokenizer:
    """As Llama 2's: metaspace spelling, all 256 bytes as tokens (from id 3 on), the leading space stripped."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *BYTE_FALLBACK_WORDS]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool> x", normalized=False)])
    return tokenizer


@cache
def byte_level() -> Tokenizer:
    return byte_tokenizer()


@cache
def text_of(name: str) -> TokenText:
    return TokenText(TOKENIZERS[name]())


def spelling(tokenizer: Tokenizer, byte: int) -> int:
    """The token of a byte."""
    if (found := tokenizer.token_to_id(f"<0x{byte:02X}>")) is not None:
        return int(found)
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = [other for other in range(256) if other not in printable]
    letter = chr(byte) if byte in printable else chr(0x100 + shifted.index(byte))
    return int(tokenizer.token_to_id(letter))


def kept_text(tokenizer: Tokenizer, token_ids: list[int], stops: tuple[str, ...], min_tokens: int) -> str:
    """What may be shown of an answer of `token_ids`, which ended with them: all before the first stop string that
    begins behind the text of its first `min_tokens` tokens."""
    whole = tokenizer.decode(token_ids, skip_special_tokens=True)
    firsts = (tokenizer.decode(token_ids[:end], skip_special_tokens=True) for end in range(min_tokens, 0, -1))
    begin = next((len(first) for first in firsts if whole.startswith(first)), 0)
    return whole[: min((at for stop in stops if (at := whole.find(stop, begin)) >= 0), default=len(whole))]


TOKENIZERS = {"byte fallback": byte_fallback, "byte level": byte_level}
