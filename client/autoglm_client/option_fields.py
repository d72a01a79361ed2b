"""The options of a generation: as fields, as keywords and on the wire. Made by `make options`; not to be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

OptionKind = Literal["INT32", "INT64", "FP32", "BOOL", "STRING", "STRINGS", "JSON"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionFields:
    """Of one request. None leaves an option to the server."""

    max_tokens: int | None = None
    """Longest answer, in tokens."""
    min_tokens: int | None = None
    """Shortest answer, in tokens."""
    temperature: float | None = None
    """How freely tokens are drawn; 0 is greedy."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0 and -1 are all."""
    top_p: float | None = None
    """Draw from the likeliest tokens of this total probability."""
    min_p: float | None = None
    """Draw from tokens at least so many times as likely as the likeliest one; 0 is off."""
    repetition_penalty: float | None = None
    """Above 1, tokens of prompt and answer become less likely to come again."""
    presence_penalty: float | None = None
    """Taken from the logit of each token that the answer holds."""
    frequency_penalty: float | None = None
    """Taken from a token's logit for each time that the answer holds it."""
    seed: int | None = None
    """Makes a drawn answer repeatable."""
    stop: str | Sequence[str] | None = None
    """End before this text."""
    ignore_eos: bool | None = None
    """Go on after the token that ends a sequence."""
    logprobs: int | None = None
    """Log-probabilities of each chosen token and of so many of the likeliest ones; 0 is none."""
    deadline_ms: int | None = None
    """The server ends the answer so many milliseconds after the request arrived."""
    heartbeat_ms: int | None = None
    """An empty response after so many milliseconds of silence; a client that is gone is noticed by it."""
    priority: int | None = None
    """Who waits for a slot: 1 goes first, 9 last; 0 is the default."""
    prompt_lookup: int | None = None
    """Most tokens drafted at a time from what the request has said; no answer changes."""
    cache: str | None = None
    """Answers the server keeps: default, bypass, refresh, or only (a miss fails)."""
    tenant: str | None = None
    """Answers are kept, and beginnings of prompts reused, for each tenant apart."""
    user: str | None = None
    """Whose request it is; where the server admits by features, those of one user are served together."""
    semantic: bool | None = None
    """Take a kept answer to a question of the same meaning, or never."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    """What is added to the logit of a token id."""
    guided_json: Mapping[str, Any] | str | None = None
    """Only an answer that keeps to this JSON schema."""
    guided_regex: str | None = None
    """Only an answer that matches this expression."""
    guided_grammar: str | None = None
    """Only an answer of this Lark grammar: its text, or the name of a ready one: open-autoglm."""
    bad_words: str | Sequence[str] | None = None
    """The token that would complete one of these, at the beginning of a text or after a space, never comes."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call; the calls are part of the answer's text, in the model's form."""


class OptionChanges(TypedDict, total=False):
    """The fields of `OptionFields` as keyword arguments."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    logprobs: int | None
    deadline_ms: int | None
    heartbeat_ms: int | None
    priority: int | None
    prompt_lookup: int | None
    cache: str | None
    tenant: str | None
    user: str | None
    semantic: bool | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    guided_json: Mapping[str, Any] | str | None
    guided_regex: str | None
    guided_grammar: str | None
    bad_words: str | Sequence[str] | None
    tools: Sequence[Mapping[str, Any]] | None


OPTION_KINDS: Mapping[str, OptionKind] = {
    "max_tokens": "INT32",
    "min_tokens": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "min_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "seed": "INT64",
    "stop": "STRINGS",
    "ignore_eos": "BOOL",
    "logprobs": "INT32",
    "deadline_ms": "INT32",
    "heartbeat_ms": "INT32",
    "priority": "INT32",
    "prompt_lookup": "INT32",
    "cache": "STRING",
    "tenant": "STRING",
    "user": "STRING",
    "semantic": "BOOL",
    "logit_bias": "JSON",
    "guided_json": "JSON",
    "guided_regex": "STRING",
    "guided_grammar": "STRING",
    "bad_words": "STRINGS",
    "tools": "JSON",
}
