"""Whatever goes wrong before an answer begins, as an answer in the shape of OpenAI's errors."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from .errors import ApiError

_MOST_SHOWN = 80  # characters of a value


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_ours(_: Request, error: ApiError) -> Response:
        return failure(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        return failure(_refusal(error))

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        return failure(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


def failure(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def _refusal(error: RequestValidationError) -> ApiError:
    """Of the first of its complaints, which names the field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not supported by this server", param=where, code="unsupported_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", code="invalid_json")
    value = "" if first["type"] == "missing" else f", not {first['input']!r:.{_MOST_SHOWN}}"
    return ApiError(
        400, f"{where or 'the body'}: {first['msg'].lower()}{value}", param=where or None, code="invalid_value"
    )
