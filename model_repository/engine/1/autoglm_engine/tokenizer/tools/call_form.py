"""How a model writes its calls: strings and their order, as its chat template renders them.

An answer with two calls is, in this order:

    opening NAME middle ARGUMENTS between NAME middle ARGUMENTS closing

ARGUMENTS are one JSON object, or, where there are `tags`, each on its own:

    before_key KEY before_value VALUE after_value separator before_key KEY ... after_value

The strings have places for what differs from call to call: `NAME`, `ID`, `INDEX` (of the call) and `KEY`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NAME, ID, INDEX, KEY = "«name»", "«id»", "«index»", "«key»"


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments that are written one by one. `before_value` is by JSON type: some forms name it. `quote`: around
    strings, "" where they stand as they are up to `after_value`. `wrapper`: around strings that markup is in.
    `python`: the types whose values are written as Python writes them; others are JSON. `is_literal`: a value ends by
    its own notation, in which keys of objects may be bare; `is_raw`: but for strings, which have no escapes."""

    before_key: str
    before_value: Mapping[str, str]
    after_value: str
    separator: str
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
    also: tuple[str, ...] = field(default=())
    arguments_as_text: bool = False

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def example(self) -> str:
        """Of one call, for people."""
        arguments = "JSON"
        if (tags := self.tags) is not None:
            value = f"{tags.quote}VALUE{tags.quote}"
            arguments = f"{tags.before_key}{KEY}{tags.before_value['string']}{value}{tags.after_value}"
        return f"{self.opening}{NAME}{self.middle}{arguments}{self.closing}"

    def needed(self) -> Iterator[str]:
        """The strings without which a call cannot be read."""
        yield from (self.opening, self.middle)
        if (tags := self.tags) is not None:
            yield from (tags.before_key, *tags.before_value.values(), tags.after_value, tags.separator, tags.quote)

    def texts(self) -> Iterator[str]:
        """All strings that it is made of."""
        yield from (self.opening, self.middle, self.closing, self.between or "", self.lead, *self.also)
        if (tags := self.tags) is not None:
            yield from (tags.before_key, *tags.before_value.values(), tags.after_value, tags.separator, tags.quote)


PLAIN_TEXT = CallForm(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    closing="}\n</tool_call>",
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    name_field="name",
    arguments_field="arguments",
)
"""What a model is told in plain text (`plain_text`)."""
