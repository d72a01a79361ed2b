"""The rules of arguments that are written one by one, each held to its property's schema.

Of strings that stand as they are, only `enum` and `const` are held to: they go up to what follows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .call_form import KEY, CallForm, Tags
from .lark import alternatives, bounded, joined, json_rule, literal, marked
from .literal_grammar import literal_rule, literal_rules
from .schema_types import types_of

_SHARED = ("$defs", "definitions")  # what references in a property's schema lead to
_TEXT = "text"


def arguments(
    form: CallForm, schema: Mapping[str, Any], name: str, tokens: Mapping[str, int], *, strict: bool
) -> tuple[str, list[str]]:
    """Of one call: what stands for them, and the rules that this needs, which begin with `name`. Properties come in
    the order of the schema, or by the alphabet where the form has that; others do not."""
    assert form.tags is not None, "of a form with tags"
    written = _Writer(form.tags, tokens, strict)
    shared = {key: schema[key] for key in _SHARED if key in schema}
    properties, required = schema.get("properties"), schema.get("required")
    given = dict(properties) if isinstance(properties, Mapping) else {}
    needed = {key for key in required if isinstance(key, str)} if isinstance(required, list) else set()
    ordered = sorted(given.items()) if form.is_sorted else list(given.items())
    texts = bounded(
        written.argument(key, {**shared, **described} if isinstance(described, Mapping) else shared)
        for key, described in ordered
    )
    items = [(text, key in needed) for text, (key, _) in zip(texts, ordered, strict=True)]
    if not form.tags.separator:
        return joined(*(item if is_required else f"({item})?" for item, is_required in items)), []
    return _separated(items, marked(form.tags.separator, tokens), name)


def value_rules(form: CallForm, tokens: Mapping[str, int]) -> list[str]:
    """That all calls of the form share."""
    tags = form.tags
    if tags is None:
        return []
    rules = literal_rules(tags, tokens) if tags.is_literal or tags.python else []
    if tags.is_literal or "string" not in dict(tags.before_value):
        return rules
    end = tags.after_value.partition(KEY)[0]
    token = next((token for token in tokens if end.strip().startswith(token)), None)
    if token is not None:
        return [*rules, f"{_TEXT}: TEXT? {marked(end.lstrip(), tokens)}", "TEXT: /(?s:.+)/"]
    mark = end.rstrip() or end
    rest = marked(end[len(mark) :], tokens)
    return [*rules, f"{_TEXT}: {joined('bare', rest)}", f"bare[suffix={literal(mark)}]: /(?s:.*)/"]


def _separated(items: Sequence[tuple[str, bool]], separator: str, name: str) -> tuple[str, list[str]]:
    """A rule for what may follow each item, and for what may come first: whatever has only optional ones before."""
    rules: list[str] = []
    firsts: list[str] = []
    for number, (item, is_required) in enumerate(items):
        rest = f"{name}_rest_{number + 1}" if number + 1 < len(items) else ""
        firsts.append(joined(item, rest))
        if number:
            follows = joined(separator, item)
            rules.append(f"{name}_rest_{number}: {joined(follows if is_required else f'({follows})?', rest)}")
        if is_required and all(not needed for _, needed in items[:number]):
            break
    else:
        number = len(items)
    for later in range(number + 1, len(items)):
        item, is_required = items[later]
        follows, rest = joined(separator, item), f"{name}_rest_{later + 1}" if later + 1 < len(items) else ""
        rules.append(f"{name}_rest_{later}: {joined(follows if is_required else f'({follows})?', rest)}")
    if not firsts:
        return "", []
    optional = "" if any(is_required for _, is_required in items) else "?"
    return f"({alternatives(firsts)}){optional}", rules


class _Writer:
    def __init__(self, tags: Tags, tokens: Mapping[str, int], strict: bool) -> None:
        self._tags, self._tokens, self._strict = tags, tokens, strict
        self._before = dict(tags.before_value)

    def argument(self, key: str, schema: Mapping[str, Any]) -> str:
        """With its key. Types whose values are written alike are one alternative."""
        groups: dict[str, list[str]] = {}
        for kind in types_of(schema):
            if kind in self._before:
                groups.setdefault(self._before[kind], []).append(kind)
        end = self._tags.after_value.replace(KEY, key)
        parts = [
            joined(marked(before, self._tokens), self._value(schema, kinds, marked(end, self._tokens)))
            for before, kinds in groups.items()
        ]
        choice = parts[0] if len(parts) == 1 else f"({alternatives(parts)})"
        return joined(marked(self._tags.before_key + key, self._tokens), choice)

    def _value(self, schema: Mapping[str, Any], kinds: Sequence[str], end: str) -> str:
        """With its end."""
        if self._tags.is_literal:
            return joined(literal_rule(schema, self._tags, self._tokens, strict=self._strict), end)
        if kinds == ["string"]:
            return self._string(schema, end)
        python = [kind for kind in kinds if kind in self._tags.python]
        narrowed = {**schema, "type": kinds[0]} if len(kinds) == 1 else schema
        if len(kinds) == len(python) or len(kinds) == 1:
            rule = literal_rule if python else None
            plain = json_rule(narrowed, strict=self._strict)
            written = rule(narrowed, self._tags, self._tokens, strict=self._strict) if rule else plain
            return joined(written, end)
        words = [word for kind, word in (("boolean", '"True" | "False"'), ("null", '"None"')) if kind in python]
        return joined(f"({alternatives([json_rule(schema, strict=self._strict), *words])})", end)

    def _string(self, schema: Mapping[str, Any], end: str) -> str:
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if not isinstance(values, list) or not values:
            return _TEXT if KEY not in self._tags.after_value else joined(_TEXT, end)
        return joined(f"({alternatives(literal(str(value)) for value in values)})", end)
