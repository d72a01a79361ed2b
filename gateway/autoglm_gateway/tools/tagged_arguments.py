"""Arguments that are written one by one, each with its key, become JSON here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from .call_form import KEY, CallForm, Tags
from .events import Arguments, Steps
from .literals import as_json, literal, raw_string
from .pattern import Pieces, matched, pieces
from .reader import Broken, Reader, open_end
from .schema_types import property_types, type_of


def begins_with_arguments(reader: Reader, at: int, form: CallForm, ends: Pieces) -> Steps[bool]:
    """Whether a key, or the end of a call without arguments, is there. `ends`: any of them."""
    assert form.tags is not None, "of a form with tags"
    key = pieces(form.tags.before_key)[:1]
    if not key:
        return True
    for piece in (*key, *ends):
        if (yield from _is_there(reader, at, (piece,))):
            return True
    return False


def tagged_arguments(reader: Reader, form: CallForm, ends: Pieces, schema: Mapping[str, Any]) -> Steps[None]:
    """Tells them. Without their end, the object stays open: it may lack arguments."""
    assert form.tags is not None, "of a form with tags"
    yield Arguments("{")
    before = ""
    try:
        while not (yield from _ended(reader, ends, form)):
            if before:
                reader.use((yield from matched(reader, 0, pieces(form.tags.separator))))
            yield from _argument(reader, form.tags, schema, before)
            before = ", "
    except Broken:
        return
    yield Arguments("}")


def _ended(reader: Reader, ends: Pieces, form: CallForm) -> Steps[bool]:
    """Also with the text, where nothing closes a call. Raises Broken where that ends too early."""
    try:
        yield from reader.after_space(0)
    except Broken:
        if form.closing.strip():
            raise
        return True
    for piece in ends:
        if (yield from _is_there(reader, 0, (piece,))):
            return True
    return False


def _is_there(reader: Reader, at: int, wanted: Pieces) -> Steps[bool]:
    try:
        yield from matched(reader, at, wanted)
    except Broken:
        return False
    return True


def _argument(reader: Reader, tags: Tags, schema: Mapping[str, Any], before: str) -> Steps[None]:
    """Raises Broken where it is none."""
    begin = yield from matched(reader, 0, pieces(tags.before_key))
    between = list(dict.fromkeys(text for _, text in tags.before_value))
    end = yield from reader.find(pieces(between[0])[0], begin)
    key = reader.text[begin:end].strip()
    for text in between:
        try:
            at = yield from matched(reader, end, pieces(text))
        except Broken:
            continue
        break
    else:
        raise Broken
    if text.endswith("\n") and (yield from reader.character(at)) == "\n":
        at += 1
    reader.use(at)
    yield Arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
    if tags.is_literal:
        is_raw = tags.is_raw and (yield from reader.has(tags.quote, 0))
        written, at = yield from raw_string(reader, 0, tags.quote) if is_raw else literal(reader, 0, tags.quote)
        reader.use(at)
        yield Arguments(written)
        reader.use((yield from matched(reader, 0, pieces(tags.after_value))))
        return
    kinds = {kind for kind, before_value in tags.before_value if before_value == text}
    types = kinds & {*property_types(schema, key)} or kinds
    is_bare = types == {"string"}
    end_mark, *others = _end_of(tags, key)
    layout = "\n" if tags.after_value.startswith("\n") else ""
    if is_bare and not tags.wrapper[0]:
        yield from _string(reader, layout, end_mark)
    else:
        yield from _value(reader, layout, end_mark, tags, types)
    reader.use((yield from matched(reader, 0, tuple(others))))


def _end_of(tags: Tags, key: str) -> list[str]:
    """What ends a value, and what comes after that."""
    first, *others = tags.after_value.replace(KEY, key).split()
    return [first, *(piece for other in others for piece in pieces(other))]


def _string(reader: Reader, layout: str, mark: str) -> Steps[None]:
    """Tells the value as it comes. `layout`: what stands between it and its end mark. Raises Broken."""
    yield Arguments('"')
    while True:
        end = reader.text.find(mark)
        if end >= 0:
            value = reader.use(end).removesuffix(layout)
            reader.use(len(mark))
            yield Arguments(f'{_inner(value)}"')
            return
        open_ = 0 if reader.ended else max(open_end(reader.text, mark), open_end(reader.text, layout + mark))
        if count := len(reader.text) - open_:
            yield Arguments(_inner(reader.use(count)))
        yield from reader.more()


def _value(reader: Reader, layout: str, mark: str, tags: Tags, types: Set[str]) -> Steps[None]:
    """Tells the value when it is complete: what is no JSON of the types is a string. Raises Broken."""
    opened, closed = tags.wrapper
    is_wrapped = bool(opened) and (yield from reader.has(opened, 0))
    end = yield from reader.find(closed + mark if is_wrapped else mark, 0)
    value = reader.use(end + len(closed) * is_wrapped).removesuffix(layout)
    reader.use(len(mark))
    if is_wrapped:
        yield Arguments(json.dumps(value[len(opened) : len(value) - len(closed)], ensure_ascii=False))
        return
    written = None if types == {"string"} else as_json(value, is_python=bool(tags.python))
    if written is not None and "string" in types and not _is_of(written, types):
        written = None
    yield Arguments(json.dumps(value, ensure_ascii=False) if written is None else written)


def _is_of(written: str, types: Set[str]) -> bool:
    kind = type_of(json.loads(written))
    return kind in types or (kind == "integer" and "number" in types)


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
