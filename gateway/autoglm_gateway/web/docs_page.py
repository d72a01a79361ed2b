"""/docs: the document at /openapi.json as one plain page, with no script and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-top: 1px solid; padding-top: 1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884 }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
"""
_POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "minItems": "items at least",
    "maxItems": "items at most",
    "maxLength": "characters at most",
}


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse("".join(_page(request.app.openapi())), headers=_POLICY)


def _page(document: dict[str, Any]) -> Iterator[str]:
    title = escape(document["info"]["title"])
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    yield f'<h1>{title}</h1><p>As a document for programs: <a href="/openapi.json">/openapi.json</a>.'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(f"{method.upper()} {path}", operation)
    for name, schema in document["components"]["schemas"].items():
        yield from _schema(name, schema)
    yield "</html>"


def _operation(name: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(name)}</code></h2><p>{escape(operation.get('description', ''))}"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Takes <code>{escape(kind)}</code>: {_type(content['schema'])}."
    rows = [
        (escape(status), escape(answer["description"]), _contents(answer))
        for status, answer in operation["responses"].items()
    ]
    yield from _table(("status", "when", "what"), rows)


def _contents(answer: dict[str, Any]) -> str:
    kinds = answer.get("content", {}).items()
    return "; ".join(f"<code>{escape(kind)}</code>: {_type(content['schema'])}" for kind, content in kinds)


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}'
    needed = schema.get("required", [])
    rows = [
        (f"<code>{escape(field)}</code>{', required' if field in needed else ''}", _type(kind), _notes(kind))
        for field, kind in schema.get("properties", {}).items()
    ]
    yield from _table(("field", "type", ""), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in allowed)
    kind = escape(str(schema.get("type", "any")))
    inner = schema.get("items") or schema.get("additionalProperties")
    within = f" of {_type(inner)}" if isinstance(inner, dict) else ""
    return kind + within + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    told = [f"{words} {schema[name]:g}" for name, words in _BOUNDS.items() if name in schema]
    return f" ({', '.join(told)})" if told else ""


def _notes(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    told = [schema.get("description", ""), "" if default in (None, []) else f"default {json.dumps(default)}"]
    return escape("; ".join(part for part in told if part))
