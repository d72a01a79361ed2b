"""The flags of a request's options. Made by `make options`; not to be edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .flags import flag


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """None leaves an option to the server."""

    # fmt: off
    max_tokens: Annotated[int | None, flag("max_tokens", "Longest answer, in tokens.", "-n")] = None
    temperature: Annotated[float | None, flag("temperature", "Sampling temperature; 0 is greedy.", "-t")] = None
    top_k: Annotated[
        int | None, flag("top_k", "Sample from this many of the most likely tokens; 0 and -1 are all.")
    ] = None
    top_p: Annotated[
        float | None, flag("top_p", "Sample from the most likely tokens that have this total probability.")
    ] = None
    seed: Annotated[int | None, flag("seed", "Makes a sampled answer repeatable.")] = None
    stop: Annotated[list[str] | None, flag("stop", "End the answer before this text.")] = None
    priority: Annotated[
        int | None, flag("priority", "Place in the queue: 1 goes first, 9 last; 0 is the default.")
    ] = None
    cache: Annotated[
        str | None, flag("cache", "Use of cached answers: default, bypass, refresh, or only (a miss fails).")
    ] = None
    semantic: Annotated[
        bool | None, flag("semantic", "Accept a cached answer to a question of the same meaning, or never.")
    ] = None
    guided_json: Annotated[str | None, flag("guided_json", "Force an answer that follows this JSON schema.")] = None
    guided_regex: Annotated[
        str | None, flag("guided_regex", "Force an answer that matches this regular expression.")
    ] = None
    guided_grammar: Annotated[
        str | None, flag("guided_grammar", "Force an answer that follows this Lark grammar: its text, or open-autoglm.")
    ] = None
    chat_template_kwargs: Annotated[
        str | None, flag("chat_template_kwargs", "Variables for the chat template; others do nothing.")
    ] = None
