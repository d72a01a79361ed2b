"""Data URLs of images, in strict base64."""

from __future__ import annotations

import base64
import binascii
import re

from autoglm_client.exceptions import InvalidRequestError

_HEAD = re.compile(r"data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)
_LONGEST_SHOWN = 40  # of what stands before the comma


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def file_in_data_url(url: str, max_bytes: int) -> bytes:
    """Raises InvalidRequestError, which shows nothing of the data."""
    head = _HEAD.match(url)
    if head is None:
        shown = url[: _LONGEST_SHOWN + 1].partition(",")[0][:_LONGEST_SHOWN]
        raise InvalidRequestError(
            f"an image is given as {shown!r}: a data URL begins with data:image/png;base64, or the same with jpeg or "
            "webp"
        )
    data = url[head.end() :]
    if len(data) > 4 * -(-max_bytes // 3):
        raise InvalidRequestError(f"an image is larger than {max_bytes:,} bytes, the most that it may have")
    try:
        raw = data.encode("ascii")
        file = base64.b64decode(raw, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidRequestError("an image is given as a data URL whose base64 is broken") from None
    if len(raw) != 4 * -(-len(file) // 3):
        raise InvalidRequestError("an image is given as a data URL whose base64 is broken")
    return file
