"""Text of others for a person to see: what would command a terminal, or change the order of what is read, is shown as
an escape.

Models, servers and files say such things, too, and a terminal cannot tell who speaks.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0 (but newline and tab), DEL, C1; marks, embeddings, overrides and isolates of direction (UAX #9); line and paragraph
# separators; halves of surrogate pairs, which cannot be written at all.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with its commands as Python would write them. What was made visible stays as it is."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that says the same to a program and nothing to a terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
