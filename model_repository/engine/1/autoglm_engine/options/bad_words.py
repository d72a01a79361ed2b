"""Words that an answer must not hold: token sequences of which the last token may not follow the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from autoglm_engine.errors import InvalidRequest

from .parsing import decode_utf8

MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARACTERS = 256
NAME = "bad_words"

Words = tuple[tuple[int, ...], ...]


class BadWords:
    """Over one completion, of which each token is counted."""

    def __init__(self, words: Words) -> None:
        self._alone = frozenset(word[0] for word in words if len(word) == 1)
        self._longer = tuple(word for word in words if len(word) > 1)
        self._tail: deque[int] = deque(maxlen=max((len(word) - 1 for word in self._longer), default=0))

    def count(self, token_id: int) -> None:
        self._tail.append(token_id)

    def next_banned(self) -> frozenset[int]:
        """The tokens that would complete a word."""
        if not self._longer:
            return self._alone
        tail = tuple(self._tail)
        return self._alone.union(word[-1] for word in self._longer if tail[1 - len(word) :] == word[:-1])


def word_tokens(raw: Sequence[bytes], encode: Callable[[str], list[int]]) -> Words:
    """Each word as it is spelled at the beginning of a text and after a space; an empty one is none, as in
    TensorRT-LLM. Raises InvalidRequest."""
    if len(raw) > MAX_BAD_WORDS:
        raise InvalidRequest(f"{NAME} has {len(raw)} words; at most {MAX_BAD_WORDS} are allowed")
    found: dict[tuple[int, ...], None] = {}
    for index, item in enumerate(raw):
        word = decode_utf8(item, f"{NAME}[{index}]")
        if not word:
            continue
        if len(word) > MAX_BAD_WORD_CHARACTERS:
            raise InvalidRequest(
                f"{NAME}[{index}] has {len(word)} characters; at most {MAX_BAD_WORD_CHARACTERS} are allowed"
            )
        spellings = [tuple(encode(text)) for text in (word, f" {word.lstrip(' ')}")]
        if not spellings[0]:
            raise InvalidRequest(f"{NAME}[{index}] encodes to no token, so no token of it can be banned")
        found |= dict.fromkeys(spelling for spelling in spellings if spelling)
    return tuple(found)


def check_words(words: Words, vocab_size: int) -> None:
    """For the engine, whose tensors anybody can send. Raises InvalidRequest."""
    if len(words) > 2 * MAX_BAD_WORDS or any(len(word) > MAX_BAD_WORD_CHARACTERS * 4 for word in words):
        raise InvalidRequest(f"{NAME} has more or longer words than {MAX_BAD_WORDS} of {MAX_BAD_WORD_CHARACTERS}")
    for word in words:
        if not word or not all(0 <= token_id < vocab_size for token_id in word):
            raise InvalidRequest(f"{NAME} has {list(word)!s:.40}; tokens are between 0 and {vocab_size - 1}")
