"""Calls as GLM-4.5 models write them, with arguments that become JSON here:

<tool_call>name
<arg_key>key</arg_key>
<arg_value>a string as it is, or JSON</arg_value>
</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .events import Arguments, Called, Functions, Said, Steps
from .hermes import BEGIN, END
from .reader import Broken, Reader, open_end

KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"


def glm_xml(reader: Reader, functions: Functions) -> Steps[None]:
    while (yield from reader.said_until(BEGIN)):
        name, at = yield from _head(reader, functions)
        if not name:
            yield Said(reader.use(len(BEGIN)))
            continue
        reader.use(at)
        yield Called(name)
        yield Arguments("{")
        try:
            yield from _arguments(reader, functions[name])
        except Broken:
            continue  # without its end, the object stays open: it may lack arguments


def _head(reader: Reader, functions: Functions) -> Steps[tuple[str, int]]:
    """The name, and where its arguments begin; no name where there is no call."""
    try:
        at = begin = yield from reader.after_space(len(BEGIN))
        while (yield from reader.character(at)) not in "<\r\n":
            at += 1
        name = reader.text[begin:at].strip()
        at = yield from reader.after_space(at)
        follows = (yield from reader.has(KEY, at)) or (yield from reader.has(END, at))
    except Broken:
        return "", 0
    return (name, at) if follows and name in functions else ("", 0)


def _arguments(reader: Reader, schema: Mapping[str, Any]) -> Steps[None]:
    """Raises Broken where the arguments do not end as they should."""
    before = ""
    while True:
        at = yield from reader.after_space(0)
        if (yield from reader.has(END, at)):
            reader.use(at + len(END))
            yield Arguments("}")
            return
        key, at = yield from _key(reader, at)
        reader.use(at)
        yield Arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        yield from _string(reader) if _is_string(schema, key) else _json(reader)
        before = ", "


def _key(reader: Reader, at: int) -> Steps[tuple[str, int]]:
    """And where its value begins."""
    if not (yield from reader.has(KEY, at)):
        raise Broken
    begin = at + len(KEY)
    end = yield from reader.find(KEY_END, begin)
    at = yield from reader.after_space(end + len(KEY_END))
    if not (yield from reader.has(VALUE, at)):
        raise Broken
    return reader.text[begin:end].strip(), at + len(VALUE)


def _string(reader: Reader) -> Steps[None]:
    """Tells the value as it comes. Raises Broken."""
    yield Arguments('"')
    while True:
        end = reader.text.find(VALUE_END)
        open_ = 0 if reader.ended else open_end(reader.text, VALUE_END)
        count = end if end >= 0 else len(reader.text) - open_
        if count:
            yield Arguments(json.dumps(reader.use(count), ensure_ascii=False)[1:-1])
        if end >= 0:
            reader.use(len(VALUE_END))
            yield Arguments('"')
            return
        yield from reader.more()


def _json(reader: Reader) -> Steps[None]:
    """Tells the value when it is complete: what is no JSON is a string. Raises Broken."""
    end = yield from reader.find(VALUE_END, 0)
    value = reader.use(end)
    reader.use(len(VALUE_END))
    yield Arguments(value.strip() if _is_json(value) else json.dumps(value, ensure_ascii=False))


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_string(schema: Mapping[str, Any], key: str) -> bool:
    properties = schema.get("properties")
    described = properties.get(key) if isinstance(properties, Mapping) else None
    return isinstance(described, Mapping) and described.get("type") == "string"
