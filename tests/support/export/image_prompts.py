"""Prompts with images, as an engine gives them to a runner: ids below 0, positions and features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autoglm_engine.core import Features, ImageSpan, Positions, Span, TokenIds
from autoglm_engine.vision.positions import rope_positions
from autoglm_export.model.spec import ModelSpec, RopeSpec

# A decoder as that of glm4v, without a tower.
GLM = ModelSpec(
    family="glm4v",
    vocab_size=101,
    hidden_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=32,
    intermediate_size=80,
    norm_eps=1e-5,
    rope=RopeSpec(1e4, 16, interleaved=True, sections=(2, 3, 3)),
    max_position=512,
    qkv_bias=True,
    sandwich_norm=True,
)
# As that of qwen3_vl: features behind two layers, sections that take turns.
QWEN = dataclasses.replace(
    GLM,
    family="qwen3_vl",
    num_layers=4,
    rope=RopeSpec(1e4, 32, interleaved=False, sections=(6, 5, 5), mixed_sections=True),
    num_deepstack=2,
    qkv_bias=False,
    qk_norm=True,
    sandwich_norm=False,
)
Part = int | tuple[int, int]  # so many tokens of text, or the grid of an image


@dataclass(frozen=True)
class ImagePrompt:
    ids: TokenIds  # [num_tokens]; each token of an image has its own below 0
    images: tuple[ImageSpan, ...]
    features: Features  # [number of ids below 0, feature_size]

    @classmethod
    def random(cls, parts: Sequence[Part], vocab_size: int, feature_size: int, seed: int = 0) -> ImagePrompt:
        random, ids, images = np.random.default_rng(seed), list[int](), list[ImageSpan]()
        for part in parts:
            if isinstance(part, int):
                ids += random.integers(0, vocab_size, part).tolist()
            else:
                images.append(ImageSpan(len(ids), part, random.bytes(32)))
                ids += [0] * images[-1].num_tokens
        num_rows = sum(image.num_tokens for image in images)
        return cls.of(ids, images, random.standard_normal((num_rows, feature_size)).astype(np.float32))

    @classmethod
    def of(cls, ids: Sequence[int], images: Sequence[ImageSpan], features: Features) -> ImagePrompt:
        """`ids` with any for the tokens of images."""
        numbered = np.array(ids, np.int32)
        places = np.concatenate([np.arange(0), *(np.arange(image.offset, image.end) for image in images)])
        numbered[places] = -1 - np.arange(len(places))
        return cls(numbered, tuple(images), features)

    def read_by(self, spec: ModelSpec) -> ImagePrompt:
        """With as many of each row's numbers as the decoder reads."""
        return dataclasses.replace(self, features=self.features[:, : spec.feature_size])

    def continued(self, token_id: int) -> ImagePrompt:
        return dataclasses.replace(self, ids=np.append(self.ids, np.int32(token_id)))

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
