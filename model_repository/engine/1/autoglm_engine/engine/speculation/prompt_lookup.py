"""What a sequence may say next, looked up in what it has said: the tokens that followed its last few tokens before.

The idea is prompt lookup decoding (Saxena 2023): answers that copy from their prompt are drafted without a second
model.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from autoglm_engine.core import TokenIds

_SHORTEST = 2  # one token alone is followed by too many things


class PromptLookup:
    """`tokens` is the row that holds the sequence; its tokens, once indexed, do not change. `longest`: so many of the
    last tokens are looked up, fewer where they are new, down to 2.

    The index grows by a constant time a token, and by about 150 bytes for each token and length.
    """

    def __init__(self, tokens: TokenIds, longest: int) -> None:
        self._tokens = tokens
        lengths = range(longest, min(_SHORTEST, longest) - 1, -1)
        # length -> n-gram -> the place after its last occurrence
        self._ends: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in lengths}
        self._num_indexed = 0

    def draft(self, num_tokens: int, most: int) -> TokenIds:
        """What may follow the first `num_tokens` tokens, int32 [most], or [0] where they end in nothing that came
        before.

        What repeats itself goes on to do so. No token of an image is drafted.
        """
        self._index(num_tokens - 1)
        for length, ends in self._ends.items():
            gram = tuple(self._tokens[max(0, num_tokens - length) : num_tokens].tolist())
            if (end := ends.get(gram)) is not None:
                return _of_text(np.resize(self._tokens[end : min(num_tokens, end + most)], most))
        return np.empty(0, np.int32)

    def _index(self, num_tokens: int) -> None:
        """The n-grams that end within the first `num_tokens` tokens."""
        for length, ends in self._ends.items():
            first = max(0, self._num_indexed - length + 1)
            ids = self._tokens[first:num_tokens].tolist()
            grams = zip(*(islice(ids, start, None) for start in range(length)), strict=False)
            ends.update((gram, end) for end, gram in enumerate(grams, first + length))
        self._num_indexed = num_tokens


def _of_text(draft: TokenIds) -> TokenIds:
    """Up to the first token of an image, which has an id below 0."""
    of_image = draft < 0
    return draft[: of_image.argmax()] if of_image.any() else draft
