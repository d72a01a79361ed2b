"""Grammars that requests may name instead of writing them, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

# What Open-AutoGLM's agent reads: its thoughts, then one action as a Python call whose coordinates are 0 to 999.
# The agent finds the action by its beginning, "do(action=" or "finish(message=", so neither is in the thoughts, nor the
# latter in an argument; and it reads what is typed, and the message, as they stand, so they have no escapes. Releases
# differ in what they make of <answer>, but all of them read an action without it.
OPEN_AUTOGLM = r"""
start: thoughts? action
thoughts: {<think>} THOUGHT {</think>} "\n"?
action: "finish(message=" PLAIN ")" | "do(action=" step ")"
step: "\"Launch\", app=" STRING
    | "\"Tap\", element=" POINT ( ", message=" STRING )?
    | ( "\"Double Tap\"" | "\"Long Press\"" ) ", element=" POINT
    | ( "\"Type\"" | "\"Type_Name\"" ) ", text=" PLAIN
    | "\"Swipe\", start=" POINT ", end=" POINT
    | ( "\"Note\"" | "\"Take_over\"" ) ", message=" STRING
    | "\"Call_API\", instruction=" STRING
    | "\"Wait\", duration=\"" SECONDS " seconds\""
    | "\"Interact\"" | "\"Back\"" | "\"Home\""
THOUGHT: /[^<(]{1,4000}/
PLAIN: /"([^"\\\x00-\x1f(]|\(+[^m"\\\x00-\x1f(]){0,2000}\(*"/
STRING: /"([^"\\\x00-\x1f(]|\\["\\nt]|\(+([^m"\\\x00-\x1f(]|\\["\\nt])){0,2000}\(*"/
POINT: /\[([0-9]|[1-9][0-9]{1,2}),([0-9]|[1-9][0-9]{1,2})\]/
SECONDS: /[1-9][0-9]?/
"""

READY: Mapping[str, str] = {"open-autoglm": OPEN_AUTOGLM}
_MARKS = ("<think>", "</think>")


def with_marks(grammar: str, encode: Callable[[str], Sequence[int]]) -> str:
    """Each mark in braces as the model writes it: as one token, which the library takes for no text, or as its
    letters."""
    for mark in _MARKS:
        ids = encode(mark)
        written = f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(mark)
        grammar = grammar.replace(f"{{{mark}}}", written)
    return grammar
