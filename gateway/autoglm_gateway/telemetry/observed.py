"""What is seen of one request while it passes through the gateway, for whatever reports it: log, metrics, traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from autoglm_client import GenerationOptions, Piece, Result, Usage
from starlette.types import Scope

from autoglm_gateway.caller import Caller

CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Answered:
    """One choice that came to its end. `last`: with the figures of the whole. `at`: when it was complete, by
    `perf_counter`; `first_at`: when its first piece arrived, None where it came whole."""

    last: Piece | Result
    at: float
    first_at: float | None = None

    @property
    def seconds_per_token(self) -> float | None:
        """Of the tokens after the first one; None where nothing was generated piece by piece."""
        rest = self.last.usage.completion_tokens - 1
        if self.first_at is None or rest < 1 or self.last.cache_hit in ("exact", "semantic"):
            return None
        return (self.at - self.first_at) / rest


@dataclass(slots=True)
class RequestRecord:
    """`model`: as it was asked for, where the gateway knows it, and `served`: the model that it means. `options`: of
    the first choice. `usages`: of each choice so far; `choices_per_prompt`: those of one prompt stand next to each
    other. `failures`: of the servers, by kind; `error`: the code of what went wrong after the answer had begun,
    `refusal`: before. `first_at`: when the first piece of a stream arrived. `response`: the status that was sent;
    `complete`: whether all of the answer was. Times are `perf_counter`'s."""

    endpoint: str
    request_id: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=perf_counter)
    ended: float = 0.0
    caller: Caller | None = None
    model: str | None = None
    served: str = ""
    prompts: Sequence[Any] = ()
    options: GenerationOptions | None = None
    streamed: bool = False
    choices_per_prompt: int = 1
    usages: dict[int, Usage] = field(default_factory=dict)
    answers: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    error: str | None = None
    refusal: str | None = None
    first_at: float | None = None
    first_byte_at: float | None = None
    response: int | None = None
    complete: bool = False
    left: bool = False  # the client did, before the answer was complete
    broken: bool = False  # by an error that nobody expected

    @property
    def status(self) -> int:
        if self.complete and not self.left and self.response is not None:
            return self.response
        return 500 if self.broken else CLIENT_LEFT

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds; None where nothing was streamed."""
        return None if self.first_at is None else self.first_at - self.started

    def tokens(self) -> dict[str, int]:
        """In, out, and those in that were cached; a prompt counts once."""
        firsts = dict[int, Usage]()
        for number, usage in self.usages.items():
            first = firsts.setdefault(number // self.choices_per_prompt, usage)
            if usage.cached_tokens > first.cached_tokens:
                firsts[number // self.choices_per_prompt] = usage
        return {
            "prompt_tokens": sum(usage.prompt_tokens for usage in firsts.values()),
            "completion_tokens": sum(usage.completion_tokens for usage in self.usages.values()),
            "cached_tokens": sum(usage.cached_tokens for usage in firsts.values()),
        }

    def keep_in(self, scope: Scope) -> None:
        scope.setdefault("state", {})["observed"] = self


def observed_in(scope: Scope) -> RequestRecord:
    """Of a request that passed the layer that observes; else one that nobody reports."""
    found = scope.get("state", {}).get("observed")
    return found if isinstance(found, RequestRecord) else RequestRecord("")
