"""Prompts with images, as an engine gives them to a runner: ids below 0, positions and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autoglm_engine.core import Features, ImageSpan, Positions, Span, TokenIds
from autoglm_engine.vision.positions import rope_positions

Part = int | tuple[int, int]  # so many tokens of text, or the grid of an image


@dataclass(frozen=True)
class ImagePrompt:
    ids: TokenIds  # [num_tokens]; each token of an image has its own below 0
    images: tuple[ImageSpan, ...]
    features: Features  # [number of ids below 0, hidden_size]

    @classmethod
    def random(cls, parts: Sequence[Part], vocab_size: int, hidden_size: int, seed: int = 0) -> ImagePrompt:
        random = np.random.default_rng(seed)
        ids, images, offset = [], [], 0
        for part in parts:
            if isinstance(part, int):
                ids.append(random.integers(0, vocab_size, part))
            else:
                images.append(ImageSpan(offset, part, random.bytes(32)))
                ids.append(np.zeros(images[-1].num_tokens, np.int64))
            offset += len(ids[-1])
        joined = np.concatenate(ids).astype(np.int32)
        places = np.concatenate([np.arange(0), *(np.arange(image.offset, image.end) for image in images)])
        joined[places] = -1 - np.arange(len(places))
        return cls(joined, tuple(images), random.standard_normal((len(places), hidden_size)).astype(np.float32))

    def positions(self, start: int, count: int) -> Positions:
        return rope_positions(self.images, start, count)

    def span(
        self, slot: int, start: int, end: int, *, ids: TokenIds | None = None, wants: bool = True, num_drafts: int = 0
    ) -> Span:
        """Its tokens `start ... end - 1`; `ids`: others, which are text, in place of them."""
        token_ids = self.ids[start:end] if ids is None else ids
        first, last = (int(np.count_nonzero(self.ids[:place] < 0)) for place in (start, end))
        features = self.features[first:last] if (token_ids < 0).any() else None
        positions = self.positions(start, len(token_ids))
        return Span(slot, start, token_ids, wants, num_drafts=num_drafts, positions=positions, features=features)

    def chunks(self, slot: int, sizes: Sequence[int]) -> list[Span]:
        """The whole of it in spans of these sizes, of which the last one is repeated."""
        spans, start = [], 0
        while start < len(self.ids):
            size = sizes[min(len(spans), len(sizes) - 1)]
            spans.append(self.span(slot, start, min(start + size, len(self.ids))))
            start += size
        return spans
