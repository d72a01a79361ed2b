"""Prompts with images for the fake runner, and a vision tower whose features are drawn from an image's bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from autoglm_engine.core import Features, ImageSpan, Request, Span
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.errors import EngineError
from autoglm_engine.vision.positions import rope_positions

from tests.support.engine.fakes import fake_logits, seen_tokens

HIDDEN = 4
PLACEHOLDER = 58  # the model's one token id for images
BROKEN = b"broken"  # a file that begins so cannot be encoded
Grid = tuple[int, int]


@dataclass(frozen=True)
class Picture:
    file: bytes
    grid: Grid = (2, 3)

    @property
    def digest(self) -> bytes:
        return hashlib.blake2b(self.file, digest_size=32).digest()


@dataclass
class FakeVision:
    """Encodes at once while `free`, and else when it is set. `encoded`: the files, in their order. What is given
    up is made all the same."""

    encoded: list[bytes] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)  # numbers
    max_at_once: int = 0
    num_now: int = 0

    def __post_init__(self) -> None:
        self.free, self.began = threading.Event(), threading.Event()
        self.free.set()

    def given(self) -> Vision:
        return Vision(self.encode, HIDDEN, give_up=self.given_up.append)

    def encode(self, file: bytes, grid: Grid, number: int) -> Features:
        self.num_now += 1
        self.max_at_once = max(self.max_at_once, self.num_now)
        self.encoded.append(file)
        self.began.set()
        assert self.free.wait(60), "a test left an encode waiting"
        self.num_now -= 1
        if file.startswith(BROKEN):
            raise EngineError("the image cannot be decoded")
        return features_of(file, grid)


def features_of(file: bytes, grid: Grid) -> Features:
    seed = int.from_bytes(hashlib.blake2b(file + bytes(grid), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal((grid[0] * grid[1], HIDDEN), np.float32)


def with_images(request: Request, *parts: int | Picture) -> Request:
    """With this prompt: token ids and pictures."""
    ids: list[int] = []
    images: list[ImageSpan] = []
    pictures = [part for part in parts if isinstance(part, Picture)]
    for part in parts:
        if isinstance(part, Picture):
            images.append(ImageSpan(len(ids), part.grid, part.digest))
        ids += [PLACEHOLDER] * images[-1].num_tokens if isinstance(part, Picture) else [part]
    return replace(
        request,
        prompt_ids=np.array(ids, np.int32),
        images=tuple(images),
        image_bytes=HeldImages([picture.file for picture in pictures]) if images else None,
    )


def again(request: Request, request_id: str, files: Sequence[bytes]) -> Request:
    """The same, of another id, with its files."""
    return replace(request, id=request_id, image_bytes=HeldImages(files))


def expected_with_images(request: Request, files: Sequence[bytes], num_tokens: int, vocab_size: int) -> list[int]:
    """What a greedy request over the FakeRunner answers, computed without an engine: all tokens at once, each time."""
    ids, images = request.prompt_ids.copy(), request.images
    for number, image in enumerate(images):
        ids[image.offset : image.end] = -1 - number
    features = np.concatenate([features_of(file, image.grid) for file, image in zip(files, images, strict=True)])
    for _ in range(num_tokens):
        positions = rope_positions(images, 0, len(ids))
        span = Span(0, 0, ids, wants_logits=True, positions=positions, features=features)
        ids = np.append(ids, np.int32(fake_logits(seen_tokens(span), vocab_size).argmax()))
    answer: list[int] = ids[len(request.prompt_ids) :].tolist()
    return answer
