"""Grammars that requests may name instead of writing them, in llguidance's dialect of Lark."""

from __future__ import annotations

from collections.abc import Mapping

# What Open-AutoGLM's agent reads: its thoughts, then one action as a Python call whose coordinates are 0 to 999.
OPEN_AUTOGLM = r"""
start: thoughts? ( "<answer>" action "</answer>" | action )
thoughts: "<think>" THOUGHT "</think>" "\n"?
action: "finish(message=" STRING ")" | "do(action=" step ")"
step: "\"Launch\", app=" STRING
    | "\"Tap\", element=" POINT ( ", message=" STRING )?
    | ( "\"Double Tap\"" | "\"Long Press\"" ) ", element=" POINT
    | ( "\"Type\"" | "\"Type_Name\"" ) ", text=" STRING
    | "\"Swipe\", start=" POINT ", end=" POINT
    | ( "\"Note\"" | "\"Take_over\"" ) ", message=" STRING
    | "\"Call_API\", instruction=" STRING
    | "\"Wait\", duration=\"" SECONDS " seconds\""
    | "\"Interact\"" | "\"Back\"" | "\"Home\""
THOUGHT: /[^<]{1,4000}/
STRING: /"([^"\\\x00-\x1f]|\\["\\nt]){1,2000}"/
POINT: /\[([0-9]|[1-9][0-9]{1,2}),([0-9]|[1-9][0-9]{1,2})\]/
SECONDS: /[1-9][0-9]?/
"""

READY: Mapping[str, str] = {"open-autoglm": OPEN_AUTOGLM}
