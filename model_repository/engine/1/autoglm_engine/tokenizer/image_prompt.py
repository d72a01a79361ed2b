"""Images in a prompt: each placeholder that the chat template writes becomes as many tokens as its image has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoglm_engine.core import ImageSpan, TokenIds
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.vision.asked_size import AskedSize
from autoglm_engine.vision.digest import image_digest
from autoglm_engine.vision.header import image_file, upright_size
from autoglm_engine.vision.resize import token_grid


@dataclass(frozen=True, slots=True)
class PromptImage:
    """`file`: PNG, JPEG or WEBP. `grid`: rows and columns of tokens."""

    file: bytes
    grid: tuple[int, int]
    digest: bytes


def read_images(raw: Sequence[bytes], sizes: Sequence[AskedSize], settings: VisionSettings) -> tuple[PromptImage, ...]:
    """Each a file or a data URL, and how large it is to become. Raises InvalidRequest."""
    if len(raw) > settings.max_images:
        raise InvalidRequest(f"the request has {len(raw)} images; at most {settings.max_images} are allowed")
    return tuple(
        _read_image(one, size, f"images[{index}]", settings)
        for index, (one, size) in enumerate(zip(raw, sizes, strict=True))
    )


def _read_image(raw: bytes, size: AskedSize, name: str, settings: VisionSettings) -> PromptImage:
    """What was asked is in the grid, which is part of every key: two sizes of one file are two images."""
    asked = size.within(settings, name)
    file = image_file(raw, name)
    height, width = upright_size(file, name)
    return PromptImage(file, token_grid(height, width, asked), image_digest(file, settings))


def take_sizes(messages: Sequence[dict[str, Any]]) -> tuple[AskedSize, ...]:
    """Of each part of type image, in their order; the templates see such parts without them. Raises
    InvalidRequest."""
    sizes: list[AskedSize] = []
    for index, message in enumerate(messages):
        content: Any = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else []):
            if part["type"] == "image":
                sizes.append(AskedSize.of_part(part, f"messages[{index}].content[{place}]"))
                content[place] = {"type": "image"}
    return tuple(sizes)


def place_images(
    token_ids: TokenIds, images: Sequence[PromptImage], settings: VisionSettings
) -> tuple[TokenIds, tuple[ImageSpan, ...]]:
    """The prompt with every placeholder as long as its image, and where the images are. Raises InvalidRequest where
    there are more or fewer placeholders than images: a text that spells one, or a template that drops one."""
    places = np.flatnonzero(token_ids == settings.image_token_id)
    if len(places) != len(images):
        raise InvalidRequest(
            f"the rendered messages have {len(places)} places for images, and the request has {len(images)} images; "
            "the text of a message may not spell the token of an image"
        )
    spans, lengths = list[ImageSpan](), np.ones(len(token_ids), np.int64)
    for place, image in zip(places.tolist(), images, strict=True):
        spans.append(ImageSpan(int(lengths[:place].sum()), image.grid, image.digest))
        lengths[place] = image.grid[0] * image.grid[1]
    return np.repeat(token_ids, lengths).astype(np.int32), tuple(spans)
