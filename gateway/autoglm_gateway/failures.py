"""Whatever goes wrong before an answer begins, as an answer in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from .errors import ApiError
from .refusals import refusal

_MAX_SHOWN = 80  # characters of a path


def add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_ours(_: Request, error: ApiError) -> Response:
        return failure(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        return failure(refusal(error))

    @app.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path[:_MAX_SHOWN]}: {error.detail}"
        return failure(ApiError(error.status_code, sentence), error.headers)


def failure(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error.body, error.status, {**error.headers, **(headers or {})})
