"""Questions about a server rather than to its model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.calls.control import ask_engine, send_control
from autoglm_client.transport.responses import parse_counters, parse_model_info
from autoglm_client.transport.transport import Transport

from .exceptions import AutoGLMError, ServerUnavailableError
from .model_names import ModelNames
from .types import Health, ModelInfo, ModelLimits, Stats, ThinkingMarks

_POLL_SECONDS = 0.2


async def read_health(transport: Transport, timeout: float, model: str) -> Health:
    """Asks the engine itself too: Triton calls a model ready whose process has died."""
    try:
        live: bool = (await transport.unary("ServerLive", pb.ServerLiveRequest(), timeout)).live
    except AutoGLMError as error:
        return Health(live=False, ready=False, detail=str(error))
    names = ModelNames.of(model)
    try:
        ready: bool = (await transport.unary("ServerReady", pb.ServerReadyRequest(), timeout)).ready
        models = {name: await _is_ready(transport, name, timeout) for name in (model, *names.steps)}
    except AutoGLMError as error:
        return Health(live=live, ready=False, detail=str(error))
    detail = next((f"the model {name!r} is not ready" for name, is_ready in models.items() if not is_ready), "")
    if ready and not detail:
        detail = await _engine_trouble(transport, timeout, model)
        models[names.engine] = not detail
    return Health(live=live, ready=ready and not detail, models=models, detail=detail)


async def read_models(transport: Transport, timeout: float | None) -> list[ModelInfo]:
    statistics = await transport.unary("ModelStatistics", pb.ModelStatisticsRequest(), timeout)
    return [await _model_info(transport, entry.name, entry.version, timeout) for entry in statistics.model_stats]


async def read_stats(transport: Transport, timeout: float | None, model: str) -> Stats:
    engine = await send_control(transport, {"stats": True}, timeout, model)
    statistics = await transport.unary("ModelStatistics", pb.ModelStatisticsRequest(), timeout)
    return Stats(engine=engine, models={entry.name: parse_counters(entry) for entry in statistics.model_stats})


async def read_limits(transport: Transport, timeout: float | None, model: str) -> ModelLimits:
    answer = await ask_engine(transport, {"limits": True}, timeout, model)
    numbers = {name: int(answer[name]) for name in ("max_length", "vocab_size", "num_slots")}
    call_tokens = {str(mark): int(token_id) for mark, token_id in answer.get("call_tokens", {}).items()}
    return ModelLimits(
        **numbers,
        call_form=answer.get("call_form"),
        call_tokens=call_tokens,
        max_images=int(answer.get("max_images", 0)),
        thinking=ThinkingMarks(*map(str, marks)) if (marks := answer.get("thinking")) else None,
    )


async def flush_cache(transport: Transport, timeout: float | None, model: str) -> int:
    return int((await send_control(transport, {"flush": True}, timeout, model))["flushed"])


async def wait_until_ready(health: Callable[[], Awaitable[Health]], timeout: float, address: str) -> Health:
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + timeout
    while not (state := await health()).ready:
        if clock() > give_up_at:
            raise ServerUnavailableError(f"{address} was not ready within {timeout:g} s: {state.detail}")
        await asyncio.sleep(_POLL_SECONDS)
    return state


async def _is_ready(transport: Transport, name: str, timeout: float | None) -> bool:
    return bool((await transport.unary("ModelReady", pb.ModelReadyRequest(name=name), timeout)).ready)


async def _engine_trouble(transport: Transport, timeout: float, model: str) -> str:
    try:
        answer = await ask_engine(transport, {"stats": True}, timeout, model)
    except ServerUnavailableError as error:
        return str(error)
    except AutoGLMError as error:
        return f"the engine does not answer: {error}"
    return "" if answer.get("healthy", True) else "the engine has stopped"


async def _model_info(transport: Transport, name: str, version: str, timeout: float | None) -> ModelInfo:
    metadata = await transport.unary("ModelMetadata", pb.ModelMetadataRequest(name=name), timeout)
    return parse_model_info(metadata, version, ready=await _is_ready(transport, name, timeout))
