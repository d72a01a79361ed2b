"""What a caller may ask of a generation. Ranges and defaults are the server's: `None` leaves an option to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .exceptions import InvalidRequestError
from .option_fields import OptionChanges, OptionFields


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions(OptionFields):
    """Options of one request: `OptionFields` says what each means, `docs/architecture.md` has the ranges.

    `stop` strings are matched on text and do not appear in the answer. An answer that `deadline_ms` ends has the finish
    reason `deadline`. A miss with `cache` only raises `NotCachedError`. A JSON schema may be an object or its text; of
    `guided_json`, `guided_regex` and `guided_grammar` a request has one. `tools` go with messages only.
    """

    def with_changes(self, changes: OptionChanges) -> GenerationOptions:
        if unknown := sorted(changes.keys() - OPTION_NAMES):
            raise InvalidRequestError(
                f"unknown option {unknown[0]!r}: known ones are {', '.join(sorted(OPTION_NAMES))}"
            )
        return dataclasses.replace(self, **changes)


OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(GenerationOptions))
