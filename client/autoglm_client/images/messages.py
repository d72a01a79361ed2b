"""Messages with images, as they are sent: the messages as JSON, with a mark where an image is, and the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoglm_client.exceptions import InvalidRequestError

from .data_url import is_data_url
from .image import Image

_MAX_BYTES = (1 << 31) - (1 << 24)  # of a message of gRPC, less what else is in it


def split_images(turns: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """(turns with `Image.mark` in place of each image, the images' files in their order). Contents that are lists may
    hold texts, `Image`s, parts of type text, and parts of type image_url with a data URL. Raises
    InvalidRequestError."""
    files: list[bytes] = []
    marked = [_marked(turn, f"messages[{place}]", files) for place, turn in enumerate(turns)]
    if (total := sum(map(len, files))) > _MAX_BYTES:
        raise InvalidRequestError(f"the images of a request have {total:,} bytes together; {_MAX_BYTES:,} can be sent")
    return marked, files


def _marked(turn: dict[str, Any], name: str, files: list[bytes]) -> dict[str, Any]:
    content = turn.get("content")
    if not isinstance(content, (list, tuple)):
        return turn
    return {**turn, "content": [_part(part, f"{name}.content[{at}]", files) for at, part in enumerate(content)]}


def _part(part: Any, name: str, files: list[bytes]) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping) and part.get("type") == "image_url":
        part = _image_of(part, name)
    if isinstance(part, Image):
        files.append(part.file)
        return part.mark
    return part


def _image_of(part: Mapping[str, Any], name: str) -> Image:
    """OpenAI's form."""
    asked: Any = part.get("image_url")
    url = asked.get("url") if isinstance(asked, Mapping) else None
    if not isinstance(url, str) or not is_data_url(url):
        raise InvalidRequestError(f'{name}.image_url must be {{"url": data URL of the image}}: no URL is fetched')
    try:
        return Image(url, detail=asked.get("detail", "auto"))
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}.image_url: {error}") from None
