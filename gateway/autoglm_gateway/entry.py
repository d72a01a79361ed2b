"""What is found out about one request while it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autoglm_client import Usage
from starlette.requests import HTTPConnection


@dataclass(slots=True)
class Entry:
    """Of the access log. `usages`: of each choice so far; `choices_per_prompt`: those of one prompt stand next to each other.
    `error`: the code of
    what went wrong after the answer had begun."""

    request_id: str = ""
    tenant: str | None = None
    model: str | None = None
    prompts: Sequence[Any] = ()
    usages: dict[int, Usage] = field(default_factory=dict)
    choices_per_prompt: int = 1
    error: str | None = None

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


def entry_of(connection: HTTPConnection) -> Entry:
    """One that nobody reads, where no layer keeps a log."""
    entry: Entry = getattr(connection.state, "entry", None) or Entry()
    return entry
