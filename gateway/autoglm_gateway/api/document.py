"""The document at /openapi.json: FastAPI's, with the answers and errors that there really are."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from autoglm_gateway.settings.model import GatewaySettings

from .answer_schema import ChatCompletionChunk, ErrorAnswer, Readiness, TextCompletionChunk

_REFS = "#/components/schemas/{model}"
_REASONS = {
    400: "the request is broken, or asks for what is not there: `param` names the field",
    401: "no API key, or not one of this gateway's",
    403: "this API key may not, or this web page may not",
    404: "no such model; or, with `cache` set to `only`, no kept answer",
    405: "not with this method",
    408: "the request took too long to arrive",
    413: "the body is too large",
    415: "the body is not sent as plain JSON",
    422: "the answer was not complete within its time limit",
    429: "too many requests: `Retry-After` says when to try again",
    431: "the request line and headers are too large",
    499: "the client left",
    500: "the gateway or its server failed",
    502: "the connection to the server broke",
    504: "the server stands still",
    503: "the server cannot be reached, or the gateway is overloaded: `Retry-After` says when to try again",
}
_RETRIED = {429, 503}
_OF_FASTAPI = "HTTPValidationError"
_OF_ANY = (400, 401, 403, 405, 408, 429, 431, 500, 503)
_OF_GENERATION = (404, 413, 415, 422, 499, 502, 504)

Responses = dict[int | str, dict[str, Any]]


def information(answer: type[BaseModel], *more: int) -> Responses:
    """Of an endpoint that generates nothing. `more`: statuses beside those of any endpoint."""
    return {200: {"model": answer}, **_errors(*_OF_ANY, *more)}


def generation(answer: type[BaseModel], chunk: type[BaseModel]) -> Responses:
    """Of an endpoint that generates: whole, or as events of chunks."""
    return {
        200: {"model": answer, "content": _events(chunk), "description": "the answer, whole or streamed"},
        **_errors(*_OF_ANY, *_OF_GENERATION),
    }


def about_tokens(answer: type[BaseModel]) -> Responses:
    """Of an endpoint that asks a server, which generates nothing."""
    return {200: {"model": answer}, **_errors(*_OF_ANY, *_OF_GENERATION)}


def _events(chunk: type[BaseModel]) -> dict[str, Any]:
    """The schema of one event, as OpenAPI 3.1 has it."""
    parts = [{"$ref": _REFS.format(model=part.__name__)} for part in (chunk, ErrorAnswer)]
    json = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": parts}}
    data = {"anyOf": [{"const": "[DONE]"}, json], "description": "a chunk, what went wrong midway, or the end"}
    return {"text/event-stream": {"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}}


def readiness() -> Responses:
    return {**information(Readiness), 503: {"model": Readiness | ErrorAnswer, "description": "not ready"}}


def plain(description: str) -> Responses:
    """Of an endpoint that answers with text."""
    text = {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {200: text, **_errors(*_OF_ANY)}


def _errors(*statuses: int) -> Responses:
    return {status: _error(status) for status in sorted(statuses)}


def _error(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {"model": ErrorAnswer, "description": _REASONS[status]}
    if status in _RETRIED:
        described["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return described


class DocumentedApp(FastAPI):
    """With the names of the models that there are; without FastAPI's own 422 for requests that are not valid: here that
    is 400."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            settings: GatewaySettings = self.state.settings
            document = _without_422(super().openapi())
            document["components"]["schemas"] |= _chunks()
            _name_models(document, list(settings.names))
            self.openapi_schema = document
        return self.openapi_schema


def _chunks() -> dict[str, Any]:
    """FastAPI finds models of whole bodies only."""
    chunks = models_json_schema(
        [(ChatCompletionChunk, "serialization"), (TextCompletionChunk, "serialization")], ref_template=_REFS
    )[1]
    definitions: dict[str, Any] = chunks["$defs"]
    return definitions


def _name_models(document: dict[str, Any], names: list[str]) -> None:
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"]["enum"] = names
    for parameter in document["paths"]["/v1/models/{name}"]["get"]["parameters"]:
        if parameter["name"] == "name":
            parameter["schema"]["enum"] = names


def _without_422(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            content = operation["responses"].get("422", {}).get("content", {})
            if _OF_FASTAPI in str(content):
                del operation["responses"]["422"]
    for name in (_OF_FASTAPI, "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
