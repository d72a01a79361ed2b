"""From what the client is told to the objects of OpenAI's API: chat completions, text completions, and their chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autoglm_client import Piece, Result, TokenLogprob, Usage

_MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share."""

    model: str
    prefix: str  # of its id
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}


def usage_of(usages: Sequence[Usage], choices_per_prompt: int) -> dict[str, Any]:
    """Of all choices, prompt by prompt; a prompt counts once."""
    prompts = [usages[at : at + choices_per_prompt] for at in range(0, len(usages), choices_per_prompt)]
    prompt = sum(choices[0].prompt_tokens for choices in prompts)
    cached = sum(max(usage.cached_tokens for usage in choices) for choices in prompts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def about(answer: Piece | Result) -> dict[str, Any]:
    """Beyond OpenAI's API: where the time went, and whether the answer was kept."""
    stages = answer.stages
    times = {name: round(getattr(stages, name), 3) for name in stages.__dataclass_fields__}
    return {"cache_hit": answer.cache_hit, "cache_age_ms": answer.cache_age_ms, "stages": times}


class ChatShape:
    """How choices look in a chat; `top`: alternatives of each token to show, None for no log-probabilities at all."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, top: int | None) -> None:
        self._top = top

    def opening(self, number: int) -> dict[str, Any] | None:
        return self._part(number, {"role": "assistant", "content": ""}, (), None)

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        if not piece.text and not piece.logprobs:
            return None
        return self._part(number, {"content": piece.text}, piece.logprobs, None)

    def bare(self, number: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A chunk that says nothing yet."""
        return self._part(number, {}, logprobs, None)

    def closing(self, number: int, reason: str) -> dict[str, Any] | None:
        return self._part(number, {}, (), reason)

    def choice(self, number: int, result: Result, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": result.text, "refusal": None}
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": reason,
        }

    def _part(
        self, number: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        shown = self._logprobs(logprobs) if logprobs else None
        return {"index": number, "delta": delta, "logprobs": shown, "finish_reason": reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        return {"content": [self._entry(entry) for entry in logprobs], "refusal": None}

    def _entry(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [_token(one.token, one.logprob) for one in entry.top[: self._top]]
        return {**_token(entry.token, entry.logprob), "top_logprobs": top}


class CompletionShape:
    """How choices look in a text completion."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, top: int | None) -> None:
        self._top = top
        self._offsets: dict[int, int] = {}  # characters of each choice so far

    def opening(self, number: int) -> dict[str, Any] | None:
        return None

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        if not piece.text and not piece.logprobs:
            return None
        return self._choice(number, piece.text, piece.logprobs, None)

    def closing(self, number: int, reason: str) -> dict[str, Any] | None:
        return self._choice(number, "", (), reason)

    def choice(self, number: int, result: Result, reason: str) -> dict[str, Any]:
        return self._choice(number, result.text, result.logprobs, reason)

    def _choice(self, number: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": self._logprobs(number, logprobs), "finish_reason": reason}

    def _logprobs(self, number: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._top is None or not logprobs:
            return None
        offsets, at = [], self._offsets.get(number, 0)
        for entry in logprobs:
            offsets.append(at)
            at += len(entry.token)
        self._offsets[number] = at
        return {
            "tokens": [entry.token for entry in logprobs],
            "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [{one.token: _finite(one.logprob) for one in entry.top[: self._top]} for entry in logprobs],
            "text_offset": offsets,
        }


class Shape(Protocol):
    """How the choices of one answer look; None where there is nothing to send."""

    @property
    def whole(self) -> str:
        """The kind of object that a whole answer is."""
        ...

    @property
    def chunk(self) -> str: ...

    def opening(self, number: int) -> dict[str, Any] | None: ...

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None: ...

    def closing(self, number: int, reason: str) -> dict[str, Any] | None: ...

    def choice(self, number: int, result: Result, reason: str) -> dict[str, Any]: ...


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(token.encode())}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's API has this instead for what cannot come."""
    return max(logprob, _MIN_LOGPROB)
