"""The OpenAPI document of a gateway with keys says so: /docs then asks for one, and clients that are generated send
it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from .guard import is_open

_NAME = "key"


def describe_keys(app: FastAPI) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {})["securitySchemes"] = {_NAME: {"type": "http", "scheme": "bearer"}}
        document["security"] = [{_NAME: []}]
        for path, operations in document["paths"].items():
            for operation in operations.values() if is_open(path) else ():
                operation["security"] = []
        return document

    app.openapi = openapi  # type: ignore[method-assign]
