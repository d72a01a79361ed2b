"""Token ids for images: below 0, and the same ones only for the same image of the same tenant.

A slot of keys and values is then compared by token ids alone, as it is for text. There are two halves of ids. When one
is used up the other is taken anew, and what slots keep is forgotten first: it may hold ids of that half.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np

from autoglm_engine.core import ImageSpan, Request, TokenIds
from autoglm_engine.errors import Unavailable

from .feature_pool import ImageKey, key_of

_HALF = 1 << 30
_MAX_IMAGES = 4096  # an image that is forgotten gets other ids


class ImageIds:
    """`forget_kept` makes every slot forget what nobody uses. One thread uses it."""

    def __init__(self, forget_kept: Callable[[], object], *, half: int = _HALF, max_images: int = _MAX_IMAGES) -> None:
        self._forget_kept = forget_kept
        self._half = half
        self._max_images = max_images
        self._first: OrderedDict[ImageKey, int] = OrderedDict()  # the image's highest id, least recently used first
        self._is_second = False  # half that ids are taken from
        self._num_taken = 0  # of it

    def number(self, request: Request, in_use: Callable[[], Iterable[TokenIds]]) -> TokenIds:
        """The prompt with the ids of its images in place of the model's one id for all. `in_use`: the token ids that
        requests have now. Raises Unavailable while one of them has ids that are to be taken anew."""
        tokens = request.prompt_ids.copy()
        for image in request.images:
            highest = self._highest(image, request.tenant, in_use)
            tokens[image.offset : image.end] = np.arange(highest, highest - image.num_tokens, -1)
        return tokens

    def _highest(self, image: ImageSpan, tenant: str, in_use: Callable[[], Iterable[TokenIds]]) -> int:
        key = key_of(image, tenant)
        if (highest := self._first.get(key)) is None:
            highest = self._first[key] = self._take(image.num_tokens, in_use)
        self._first.move_to_end(key)
        if len(self._first) > self._max_images:
            self._first.popitem(last=False)
        return highest

    def _take(self, count: int, in_use: Callable[[], Iterable[TokenIds]]) -> int:
        if self._num_taken + count > self._half:
            self._change_half(in_use)
        highest = -1 - self._num_taken - self._half * self._is_second
        self._num_taken += count
        return highest

    def _change_half(self, in_use: Callable[[], Iterable[TokenIds]]) -> None:
        if any(self._has_of_other_half(tokens) for tokens in in_use()):
            raise Unavailable(
                "all ids of image tokens were given since a request came that still runs; try again later"
            )
        self._is_second, self._num_taken = not self._is_second, 0
        self._first.clear()
        self._forget_kept()

    def _has_of_other_half(self, tokens: TokenIds) -> bool:
        if self._is_second:
            return bool(((tokens < 0) & (tokens >= -self._half)).any())
        return bool((tokens < -self._half).any())
