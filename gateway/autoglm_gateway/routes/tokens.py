"""The endpoints about tokens, which generate nothing: `/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from autoglm_client import AutoGLMError, ModelLimits
from autoglm_client.types import Prompt, TokenizeOptions
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from autoglm_gateway.api import document
from autoglm_gateway.api.json_body import JsonRoute
from autoglm_gateway.api.schema import ChatMessage, TemplateFields
from autoglm_gateway.api.token_schema import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from autoglm_gateway.api.translation import ImageRules, conversation, image_bytes, template_variables
from autoglm_gateway.caller import caller_of
from autoglm_gateway.errors import ApiError, api_error
from autoglm_gateway.paths import DETOKENIZE, TOKENIZE
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.observed import observed_in
from autoglm_gateway.telemetry.recording_client import kind_of
from autoglm_gateway.tools.schema import ToolOptions
from autoglm_gateway.tools.use import tool_use

from .asked_model import check_size, limits_of, upstream_of
from .departures import cancel_on_disconnect

T = TypeVar("T")
_OF_MESSAGES = (*ToolOptions.model_fields, *TemplateFields.model_fields, "mm_processor_kwargs")

router = APIRouter(route_class=JsonRoute)


@router.post(TOKENIZE, response_model=None, responses=document.about_tokens(Tokenized))
async def tokenize(body: TokenizeRequest, request: Request) -> JSONResponse:
    """The tokens that a prompt has: of a text, or of a conversation with its images and tools. It may be longer than
    the model takes."""
    upstream = upstream_of(_model(body.model, request), request)
    check_size(request, image_bytes(body.messages or []))
    limits = await limits_of(request, upstream)
    prompt, use = _prompt(body, limits), tool_use(body, request.app.state.settings.tool_format, limits)
    observed_in(request.scope).prompts = [prompt]
    asked: TokenizeOptions = {"return_token_strs": bool(body.return_token_strs)}
    if body.add_special_tokens is not None:
        asked["add_special_tokens"] = body.add_special_tokens
    if body.add_generation_prompt is not None:
        asked["add_generation_prompt"] = body.add_generation_prompt
    if body.continue_final_message:
        asked["continue_final_message"] = True
    asking = upstream.client.tokenize(
        prompt,
        tools=use.told if use else None,
        chat_template_kwargs=template_variables(body),
        tenant=caller_of(request).tenant,
        **asked,
    )
    told = await _answer(request, asking)
    answer = {
        "count": told.num_tokens,
        "max_model_len": limits.max_length,
        "tokens": told.token_ids,
        "token_strs": told.token_strs,
    }
    return JSONResponse(answer)  # a dict would be looked through number by number


@router.post(DETOKENIZE, response_model=None, responses=document.about_tokens(Detokenized))
async def detokenize(body: DetokenizeRequest, request: Request) -> JSONResponse:
    """The text that tokens are."""
    upstream = upstream_of(_model(body.model, request), request)
    check_size(request, 0)
    tenant = caller_of(request).tenant
    return JSONResponse({"prompt": await _answer(request, upstream.client.detokenize(body.tokens, tenant=tenant))})


def _model(asked: str | None, request: Request) -> str:
    """Its name. Raises ApiError where there are several to choose from."""
    settings: GatewaySettings = request.app.state.settings
    if asked is not None:
        return asked
    if len(settings.served) > 1:
        sentence = f"model is missing, and there are several: {', '.join(settings.names)}"
        raise ApiError(400, sentence, param="model", code="invalid_value")
    return next(iter(settings.served))


def _prompt(body: TokenizeRequest, limits: ModelLimits) -> Prompt:
    if body.messages is not None and body.prompt is None:
        return _turns(body.messages, body, limits)
    if body.prompt is None or body.messages is not None:
        said = "neither is there" if body.prompt is None else "both are there"
        raise ApiError(
            400, f"prompt or messages is needed, and only one of them; {said}", param="prompt", code="invalid_value"
        )
    for name in _OF_MESSAGES:
        if getattr(body, name) is not None:
            raise ApiError(400, f"{name} goes with messages, not with prompt", param=name, code="invalid_value")
    return body.prompt


def _turns(messages: list[ChatMessage], body: TokenizeRequest, limits: ModelLimits) -> Prompt:
    return conversation(messages, ImageRules.of(body.mm_processor_kwargs, limits.max_images))


async def _answer(request: Request, asking: Coroutine[Any, Any, T]) -> T:
    """Raises ApiError."""
    try:
        return await cancel_on_disconnect(request.receive, asking)
    except AutoGLMError as error:
        observed_in(request.scope).failures.append(kind_of(error))
        raise api_error(error) from None
