"""What travels between the three steps: JSON in UINT8 tensors.

Request (tokenizer -> engine): everything of `core.Request` but its id and token ids, which travel on their own.
Event (engine -> detokenizer): `core.Event` and the cell in which the detokenizer acknowledges it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import (
    CacheHit,
    CacheUse,
    Event,
    FinishReason,
    Question,
    Request,
    SamplingOptions,
    Stages,
    TokenIds,
    TokenLogprobs,
    Usage,
)
from .errors import InvalidRequest

Packed = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Ack:
    """Where an event is acknowledged: write `number` into cell `cell` of the shared-memory board `board`."""

    board: str
    cell: int
    number: int


def pack_request(request: Request) -> Packed:
    """A uint8 array [num_bytes]."""
    return _pack(
        {
            "sampling": dataclasses.asdict(request.sampling),
            "stream": request.stream,
            "arrival": request.arrival,
            "deadline": request.deadline,
            "tokenize_ms": request.tokenize_ms,
            "prompt_lookup": request.prompt_lookup,
            "cache": request.cache.value,
            "tenant": request.tenant,
            "user": request.user,
            "semantic": request.semantic,
            "question": None if request.question is None else dataclasses.astuple(request.question),
        }
    )


def unpack_request(request_id: str, token_ids: TokenIds, packed: Packed) -> Request:
    """Raises InvalidRequest when `packed` did not come from `pack_request`; the options' ranges are not checked."""
    raw = _unpack(packed, "request")
    try:
        sampling = raw.pop("sampling")
        sampling["stop"] = tuple(map(str, sampling["stop"]))
        sampling["logit_bias"] = tuple((int(i), float(bias)) for i, bias in sampling["logit_bias"])
        return Request(
            id=request_id,
            prompt_ids=token_ids,
            sampling=SamplingOptions(**sampling),
            stream=bool(raw["stream"]),
            arrival=float(raw["arrival"]),
            deadline=None if raw["deadline"] is None else float(raw["deadline"]),
            tokenize_ms=float(raw["tokenize_ms"]),
            prompt_lookup=None if raw["prompt_lookup"] is None else int(raw["prompt_lookup"]),
            cache=CacheUse(raw["cache"]),
            tenant=str(raw["tenant"]),
            user=str(raw["user"]),
            semantic=None if raw["semantic"] is None else bool(raw["semantic"]),
            question=None if raw["question"] is None else _question(*raw["question"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidRequest(f"request is not what the tokenizer model writes: {error}") from None


def _question(text: str, context: str) -> Question:
    return Question(str(text), str(context))


def pack_event(event: Event, ack: Ack | None) -> Packed:
    """A uint8 array [num_bytes]."""
    raw: dict[str, Any] = {
        "id": event.request_id,
        "tokens": event.token_ids,
        "usage": dataclasses.astuple(event.usage),
        "stages": dataclasses.astuple(event.stages),
    }
    if event.finish_reason is not None:
        raw["finish"] = event.finish_reason.value
    if event.text_bytes is not None:
        raw["text_bytes"] = event.text_bytes
    if event.is_first:
        raw["first"] = True
    if event.logprobs:
        raw["logprobs"] = [(entry.token_id, entry.logprob, entry.top) for entry in event.logprobs]
    if event.error is not None:
        raw["error"] = (event.error_code, event.error)
    if event.cache_hit is not CacheHit.NONE:
        raw["cache"] = (event.cache_hit.value, event.cache_age_ms)
    if ack is not None:
        raw["ack"] = (ack.board, ack.cell, ack.number)
    return _pack(raw)


def unpack_event(packed: Packed) -> tuple[Event, Ack | None]:
    """Raises InvalidRequest when `packed` did not come from `pack_event`."""
    raw = _unpack(packed, "event")
    try:
        return _event(raw), _ack(raw.get("ack"))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"event is not what the engine model writes: {error}") from None


def _event(raw: dict[str, Any]) -> Event:
    error_code, error = raw.get("error", ("", None))
    cache_hit, cache_age_ms = raw.get("cache", (CacheHit.NONE.value, 0.0))
    return Event(
        request_id=str(raw["id"]),
        token_ids=tuple(int(token_id) for token_id in raw["tokens"]),
        usage=Usage(*map(int, raw["usage"])),
        stages=Stages(*map(float, raw["stages"])),
        finish_reason=FinishReason(raw["finish"]) if "finish" in raw else None,
        text_bytes=int(raw["text_bytes"]) if "text_bytes" in raw else None,
        is_first=bool(raw.get("first", False)),
        logprobs=tuple(
            TokenLogprobs(token_id, logprob, tuple((int(t), float(p)) for t, p in top))
            for token_id, logprob, top in raw.get("logprobs", ())
        ),
        error=None if error is None else str(error),
        error_code=str(error_code),
        cache_hit=CacheHit(cache_hit),
        cache_age_ms=float(cache_age_ms),
    )


def _ack(raw: Any) -> Ack | None:
    if raw is None:
        return None
    board, cell, number = raw
    return Ack(str(board), int(cell), int(number))


def _pack(raw: dict[str, Any]) -> Packed:
    return np.frombuffer(json.dumps(raw, separators=(",", ":")).encode(), dtype=np.uint8)


def _unpack(packed: Packed, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(packed.tobytes())
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name} is not JSON") from None
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{name} is {type(raw).__name__}, it must be a JSON object")
    return raw
