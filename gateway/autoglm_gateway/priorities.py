"""Whose requests the server admits first, as vLLM's field `priority` says it: lower first, 0 by default.

The server knows nine classes, 1 first. Nobody is let past others for asking: a caller has a priority, which its
operator gave it, and its requests may name that one or a later one.
"""

from __future__ import annotations

from .errors import ApiError

BEST, DEFAULT, LAST = -4, 0, 4
_CLASS_OF_DEFAULT = 5


def admission_class(asked: int | None, own: int) -> int | None:
    """The server's class for a request that asked for the priority `asked` (None: for none), of a caller whose priority
    is `own`; None for the server's default. Raises ApiError for one before the caller's own."""
    if asked is not None and asked < own:
        sentence = f"priority is {asked}; it must be between {own} and {LAST} for this caller, lower being earlier"
        raise ApiError(403, sentence, param="priority", code="forbidden")
    priority = own if asked is None else asked
    return None if priority == DEFAULT else _CLASS_OF_DEFAULT + priority
