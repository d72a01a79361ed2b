"""How a model writes its calls, as the engine found it in the model's chat template, or as a setting names it.

An answer with two calls is, in this order:

    opening NAME middle ARGUMENTS between NAME middle ARGUMENTS closing

ARGUMENTS are one JSON object, or, where there are `tags`, each on its own:

    before_key KEY before_value VALUE after_value separator before_key KEY ... after_value

Strings have places (`NAME`, `ID`, `INDEX`, `KEY`) for what differs from call to call. The engine's class of this name
(`tokenizer.tools.call_form`) has the same fields; a test compares them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NAME, ID, INDEX, KEY = "«name»", "«id»", "«index»", "«key»"
PLACES = (NAME, ID, INDEX, KEY)
TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments that are written one by one. `before_value`: (JSON type, string) for each type that can be written.
    `quote`: around strings, "" where they stand as they are up to `after_value`. `wrapper`: around strings that markup
    is in. `python`: the types whose values are written as Python writes them; others are JSON. `is_literal`: a value
    ends by its own notation, in which keys of objects may be bare; `is_raw`: but for strings, which have no escapes."""

    before_key: str
    before_value: tuple[tuple[str, str], ...]
    after_value: str
    separator: str = ""
    quote: str = ""
    wrapper: tuple[str, str] = ("", "")
    python: tuple[str, ...] = ()
    is_literal: bool = False
    is_raw: bool = False


@dataclass(frozen=True, slots=True)
class CallForm:
    """`lead`: what may stand before the opening where an answer begins with it. `between`: None where an answer has one
    call. `name_field`, `arguments_field`: of the JSON object that a call is, "" where it is none. `spacing`: what JSON
    has after commas and colons, None for any. `is_sorted`: arguments come by the alphabet. `text_first`: what is said
    stands before calls. `short_ids`: an id has 9 letters and digits. `also`: marks that may stand before a call in
    place of the opening's own. `arguments_as_text`: the template takes arguments as JSON in a string."""

    opening: str
    middle: str
    closing: str
    between: str | None
    lead: str = ""
    name_field: str = ""
    arguments_field: str = ""
    spacing: tuple[str, str] | None = (", ", ": ")
    tags: Tags | None = None
    is_sorted: bool = False
    text_first: bool = True
    short_ids: bool = False
    also: tuple[str, ...] = ()
    arguments_as_text: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> CallForm:
        """As JSON has it. Raises TypeError for fields that are not known."""
        fields = {name: _frozen(value) for name, value in told.items()}
        if (tags := told.get("tags")) is not None:
            given = {name: _frozen(value) for name, value in tags.items()}
            fields["tags"] = Tags(**given | {"before_value": tuple(tags["before_value"].items())})
        return cls(**fields)

    def texts(self) -> Iterator[str]:
        """All strings that it is made of."""
        yield from (self.opening, self.middle, self.closing, self.between or "", self.lead, *self.also)
        if (tags := self.tags) is not None:
            yield from (tags.before_key, tags.after_value, tags.separator, tags.quote)
            yield from (text for _, text in tags.before_value)

    def one_call(self) -> CallForm:
        return dataclasses.replace(self, between=None)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
