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
    """Sampling temperature; 0 is greedy."""
    top_k: int | None = None
    """Sample from this many of the most likely tokens; 0 and -1 are all."""
    top_p: float | None = None
    """Sample from the most likely tokens that have this total probability."""
    min_p: float | None = None
    """Drop tokens below this share of the most likely one's probability; 0 is off."""
    repetition_penalty: float | None = None
    """Above 1, tokens of prompt and answer become less likely to be repeated."""
    presence_penalty: float | None = None
    """Subtracted from the logit of every token that is in the answer."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit for each time that it is in the answer."""
    seed: int | None = None
    """Makes a sampled answer repeatable."""
    stop: str | Sequence[str] | None = None
    """End the answer before this text."""
    ignore_eos: bool | None = None
    """Continue after the end-of-sequence token."""
    logprobs: int | None = None
    """Log-probabilities of each chosen token and of this many of the most likely ones; 0 is none."""
    deadline_ms: int | None = None
    """Milliseconds from arrival after which the server ends the answer."""
    heartbeat_ms: int | None = None
    """Milliseconds of silence after which an empty response shows whether the client is there."""
    priority: int | None = None
    """Place in the queue: 1 goes first, 9 last; 0 is the default."""
    prompt_lookup: int | None = None
    """Most tokens drafted at a time from earlier text; answers stay the same."""
    cache: str | None = None
    """Use of cached answers: default, bypass, refresh, or only (a miss fails)."""
    tenant: str | None = None
    """Cached answers and prompt prefixes are shared within a tenant only."""
    user: str | None = None
    """Whose request it is; admission by features serves requests of one user together."""
    semantic: bool | None = None
    """Accept a cached answer to a question of the same meaning, or never."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    """Added to the logits of these token ids."""
    guided_json: Mapping[str, Any] | str | None = None
    """Force an answer that follows this JSON schema."""
    guided_regex: str | None = None
    """Force an answer that matches this regular expression."""
    guided_grammar: str | None = None
    """Force an answer that follows this Lark grammar: its text, or open-autoglm."""
    guide_after: str | None = None
    """With thinking, a guide holds after what the model thinks, not from the first token on."""
    bad_words: str | Sequence[str] | None = None
    """Texts that the answer never has, as they are tokenized at the start of a text or after a space."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call; calls are part of the answer's text, in the model's own form."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Variables for the chat template; others do nothing."""
    add_generation_prompt: bool | None = None
    """End the prompt with the beginning of an assistant's turn."""
    continue_final_message: bool | None = None
    """Go on with the last message instead of a new one."""


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
    guide_after: str | None
    bad_words: str | Sequence[str] | None
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


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
    "guide_after": "STRING",
    "bad_words": "STRINGS",
    "tools": "JSON",
    "chat_template_kwargs": "JSON",
    "add_generation_prompt": "BOOL",
    "continue_final_message": "BOOL",
}
