"""Flags of the options of a request."""

from __future__ import annotations

from typing import Any

import typer
from autoglm_client.option_fields import OPTION_KINDS

SHORTER = {"chat_template_kwargs": "--template-kwargs"}  # names that help would cut at 80 columns
FROM_FILES = ("guided_json", "guided_grammar", "chat_template_kwargs")


def flag(name: str, meaning: str, *short: str) -> Any:
    """typer's option, for an annotation."""
    long = flag_name(name)
    spelled = f"{long}/--no-{long[2:]}" if OPTION_KINDS[name] == "BOOL" else long
    return typer.Option(spelled, *short, help=f"{meaning}{_form(name)}")


def flag_name(name: str) -> str:
    return SHORTER.get(name) or f"--{name.replace('_', '-')}"


def _form(name: str) -> str:
    if name in FROM_FILES:
        return " @FILE reads it."
    return " Repeatable." if OPTION_KINDS[name] == "STRINGS" else ""
