"""Text that may be others' on one line of a log: what would command a terminal, end the line or change the order of
what is read is shown as an escape. The rules are those of `autoglm_client.printable`, and newline and tab."""

from __future__ import annotations

import re

# C0, DEL, C1; marks, embeddings, overrides and isolates of direction (UAX #9); line and paragraph separators; halves of
# surrogate pairs, which cannot be written at all.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
