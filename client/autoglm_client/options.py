"""What a caller may ask of a generation. Ranges and defaults are the server's: `None` leaves an option to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from .exceptions import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of one request; `docs/architecture.md` has the ranges.

    `temperature` 0 is greedy. `stop` strings are matched on text and do not appear in the answer. `logprobs` n asks for
    the chosen token's log-probability and the n most likely ones'. `deadline_ms` is the server's own time limit,
    counted from the request's arrival: the answer then ends early, with the finish reason `deadline`. `heartbeat_ms`:
    after so long a silence the server says that it is still at work; a client that is gone is noticed by it.
    `priority`: of those that wait for a slot 1 goes first and 9 last; 0 and None are the default, 5. `prompt_lookup`:
    at most so many tokens are drafted at a time from what the request has said; no answer changes. `cache` says what
    the server's response cache may do: default, bypass, refresh, or only (then a miss raises `NotCachedError`).
    `tenant` keeps its answers apart from those of others. `user` says whose the request is: where the server admits by
    features, requests of one user are served together. `semantic` true takes the kept answer to a question of the same
    meaning; false refuses it where the server gives it to all. `logit_bias`: what is added to the logit of a token id.
    `guided_json` (a JSON schema, as an object or as text), `guided_regex` and `guided_grammar` (Lark, or the name of a
    ready one such as `open-autoglm`) leave only answers of that form; a request has one of them. `bad_words` are not in
    the answer: the tokens that spell one never follow each other. `tools`: functions that the model may call, in the
    form of OpenAI's API; with messages only. The calls are part of the answer's text, in the model's own form.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    deadline_ms: int | None = None
    heartbeat_ms: int | None = None
    priority: int | None = None
    prompt_lookup: int | None = None
    cache: str | None = None
    tenant: str | None = None
    user: str | None = None
    semantic: bool | None = None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    guided_json: Mapping[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    bad_words: str | Sequence[str] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    def with_changes(self, changes: OptionChanges) -> GenerationOptions:
        if unknown := sorted(changes.keys() - OPTION_NAMES):
            raise InvalidRequestError(
                f"unknown option {unknown[0]!r}: known ones are {', '.join(sorted(OPTION_NAMES))}"
            )
        return dataclasses.replace(self, **changes)


class OptionChanges(TypedDict, total=False):
    """The fields of `GenerationOptions` as keyword arguments."""

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


OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(GenerationOptions))
