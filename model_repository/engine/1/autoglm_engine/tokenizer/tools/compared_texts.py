"""Where texts that a template made agree, without cutting through a word or a mark."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WHOLE = re.compile(r"<[^<>\n]{1,80}>|\[/?[A-Z_]{2,40}\]|«\w+»|<[^\s<>=]*|\w+")


def cuts(text: str) -> Iterator[int]:
    """Where the text may be cut, in their order."""
    inside = {at for found in _WHOLE.finditer(text) for at in range(found.start() + 1, found.end())}
    return (at for at in range(len(text) + 1) if at not in inside)


def common_start(*texts: str) -> int:
    """How many first characters all have, where all of them may be cut."""
    most = _agreeing(*texts)
    allowed = set.intersection(*(set(cuts(text)) for text in texts))
    return max(at for at in range(most + 1) if at in allowed)


def common_end(*texts: str) -> int:
    """How many last characters all have, where all of them may be cut."""
    most = _agreeing(*(text[::-1] for text in texts))
    allowed = set.intersection(*({len(text) - at for at in cuts(text)} for text in texts))
    return max(count for count in range(most + 1) if count in allowed)


def _agreeing(*texts: str) -> int:
    shortest = min(map(len, texts))
    return next((at for at in range(shortest) if len({text[at] for text in texts}) > 1), shortest)
