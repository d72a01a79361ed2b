"""The images of a request in the message from the tokenizer model to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoglm_engine.core import ImageSpan, TokenIds
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.message_fields import integer, sequence, text

from .digest import DIGEST_BYTES

MAX_IMAGES = 64  # of a message; a model may allow fewer


def packed_images(images: Sequence[ImageSpan]) -> list[tuple[int | str, ...]]:
    """For JSON."""
    return [(image.offset, *image.grid, image.digest.hex()) for image in images]


def unpacked_images(raw: Any, token_ids: TokenIds) -> tuple[ImageSpan, ...]:
    """One behind the other, and each within the prompt, where all its tokens are the same one. Raises InvalidRequest,
    or ValueError for a digest that is not hexadecimal."""
    entries = sequence("images", raw)
    if len(entries) > MAX_IMAGES:
        raise InvalidRequest(f"images has {len(entries)} entries; at most {MAX_IMAGES} are allowed")
    images: list[ImageSpan] = []
    for entry in entries:
        images.append(_image(entry, images[-1].end if images else 0, token_ids))
    return tuple(images)


def _image(raw: Any, first: int, token_ids: TokenIds) -> ImageSpan:
    """`first`: where it may begin."""
    offset, rows, columns, digest = sequence("images", raw, 4)
    last = len(token_ids) - 1
    start = integer("the offset of an image", offset, first, last)
    grid = integer("the rows of an image", rows, 1), integer("the columns of an image", columns, 1)
    image = ImageSpan(start, grid, bytes.fromhex(text("the digest of an image", digest)))
    if image.end > len(token_ids):
        raise InvalidRequest(f"an image has the tokens {start} to {image.end - 1}; the prompt ends with token {last}")
    if len(image.digest) != DIGEST_BYTES:
        raise InvalidRequest(f"the digest of an image has {len(image.digest)} bytes; it must have {DIGEST_BYTES}")
    if (token_ids[start : image.end] != token_ids[start]).any():
        raise InvalidRequest(f"the tokens {start} to {image.end - 1} of an image are not all the same one")
    return image
