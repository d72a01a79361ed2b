"""What travels between the three steps: JSON in UINT8 tensors.

Request (tokenizer -> engine): everything of `core.Request` but its id and token ids, which travel on their own.
Event (engine -> detokenizer): `core.Event`, the cell in which the detokenizer acknowledges it, and its place in its
answer. Each names the artifact (`Manifest.short_digest`) whose vocabulary its token ids are of. Both travel sealed
(`seal`); events also lie in the caches. Each field is held to its type and range all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.options.table import MAX_PRIORITY, MAX_USER_CHARACTERS
from autoglm_engine.vision.message import MAX_IMAGES, packed_images, unpacked_images

from .core import (
    CacheHit,
    CacheUse,
    Event,
    FinishReason,
    Request,
    SamplingOptions,
    SemanticQuery,
    Stages,
    TokenIds,
    TokenLogprobs,
    Usage,
)
from .errors import CODES, InvalidRequest, Unavailable
from .flat_fields import names_of, values_getter
from .message_fields import MAX_INT64, MAX_NUMBER, flag, integer, logprob, number, sequence, text
from .packed_body import Body, BodyPiece

Packed = npt.NDArray[np.uint8]
_CHUNK = 32  # tokens
_BRACE = ord("}")
_SAMPLING_NAMES = names_of(SamplingOptions)
_sampling_values, _question_values = values_getter(SamplingOptions), values_getter(SemanticQuery)
_usage_values, _stages_values = values_getter(Usage), values_getter(Stages)


@dataclass(frozen=True, slots=True)
class Ack:
    """How an event is acknowledged: by writing `number` into cell `cell` of the board of the engine that sealed it."""

    cell: int
    number: int


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event as it arrives. `sequence_number`: 0, 1, 2, ... within one answer. `artifact`: whose token ids these
    are. `prompt_thinks`: as of `Request`."""

    event: Event
    ack: Ack | None
    sequence_number: int
    artifact: str
    prompt_thinks: bool = False


def pack_request(request: Request, artifact: str) -> Packed:
    """A uint8 array [num_bytes]."""
    raw: dict[str, Any] = {
        "artifact": artifact,
        "sampling": dict(zip(_SAMPLING_NAMES, _sampling_values(request.sampling), strict=True)),
        "stream": request.stream,
        "arrival": request.arrival,
        "deadline": request.deadline,
        "heartbeat_ms": request.heartbeat_ms,
        "tokenize_ms": request.tokenize_ms,
        "priority": request.priority,
        "prompt_lookup": request.prompt_lookup,
        "cache": request.cache.value,
        "tenant": request.tenant,
        "user": request.user,
        "semantic": request.semantic,
        "question": None if request.question is None else _question_values(request.question),
    }
    if request.images:
        raw["images"] = packed_images(request.images)
    if request.prompt_thinks:
        raw["thinks"] = True
    return _pack(raw)


def with_files(sealed: Packed, files: Sequence[bytes]) -> Packed:
    """A sealed request with the files of its images, whose digests it has: they need no seal. Behind it the files, the
    8 bytes of the length of each, and a byte with their number. Without files it stays as it is, and ends with the
    brace of its JSON, which is more than any number of files. Raises InvalidRequest for too many."""
    if not files:
        return sealed
    if len(files) > MAX_IMAGES:
        raise InvalidRequest(f"the request has {len(files)} images; at most {MAX_IMAGES} are allowed")
    lengths = (len(file).to_bytes(8, "little") for file in files)
    return np.frombuffer(b"".join([sealed.tobytes(), *files, *lengths, bytes([len(files)])]), dtype=np.uint8)


def split_files(packed: Packed) -> tuple[Packed, tuple[Packed, ...]]:
    """(the sealed request, the files of its images), where they lie. Raises InvalidRequest for what `with_files` does
    not write; whose files they are, their digests tell."""
    num_files = int(packed[-1]) if packed.size else _BRACE
    if num_files == _BRACE:
        return packed, ()
    end = packed.size - 1 - 8 * num_files
    if num_files > MAX_IMAGES or end < 0:
        raise InvalidRequest("request is not what the tokenizer model writes: the files of its images are cut off")
    lengths = [int.from_bytes(packed[at : at + 8].tobytes(), "little") for at in range(end, packed.size - 1, 8)]
    if (start := end - sum(lengths)) < 0:
        raise InvalidRequest("request is not what the tokenizer model writes: the file of an image is cut off")
    places = list(accumulate(lengths, initial=start))
    return packed[:start], tuple(packed[first:last] for first, last in pairwise(places))


def unpack_request(request_id: str, token_ids: TokenIds, packed: Packed, artifact: str) -> Request:
    """Raises InvalidRequest when `packed` did not come from `pack_request`, Unavailable when its token ids are not of
    `artifact`; the options' ranges are not checked."""
    raw = _unpack(packed, "request")
    try:
        check_artifact(text("artifact", raw["artifact"]), artifact)
        question = raw["question"]
        return Request(
            id=request_id,
            prompt_ids=token_ids,
            sampling=_sampling(raw["sampling"]),
            stream=flag("stream", raw["stream"]),
            arrival=number("arrival", raw["arrival"]),
            deadline=None if raw["deadline"] is None else number("deadline", raw["deadline"]),
            heartbeat_ms=None if raw["heartbeat_ms"] is None else integer("heartbeat_ms", raw["heartbeat_ms"]),
            tokenize_ms=number("tokenize_ms", raw["tokenize_ms"]),
            priority=integer("priority", raw["priority"], 1, MAX_PRIORITY),
            prompt_lookup=None if raw["prompt_lookup"] is None else integer("prompt_lookup", raw["prompt_lookup"]),
            cache=CacheUse(raw["cache"]),
            tenant=text("tenant", raw["tenant"]),
            user=text("user", raw["user"], MAX_USER_CHARACTERS),
            semantic=None if raw["semantic"] is None else flag("semantic", raw["semantic"]),
            question=None if question is None else SemanticQuery(*(text("question", part) for part in question)),
            images=unpacked_images(raw.get("images", []), token_ids),
            prompt_thinks=flag("thinks", raw.get("thinks", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"request is not what the tokenizer model writes: {error}") from None


def _sampling(raw: dict[str, Any]) -> SamplingOptions:
    stop = tuple(text("stop", string) for string in raw.pop("stop"))
    bias = tuple((integer("logit_bias", i), number("logit_bias", b, -MAX_NUMBER)) for i, b in raw.pop("logit_bias"))
    words = tuple(tuple(integer("bad_words", i) for i in sequence("bad_words", word)) for word in raw.pop("bad_words"))
    return SamplingOptions(stop=stop, logit_bias=bias, bad_words=words, **raw)


def check_artifact(tokenized_for: str, served: str) -> None:
    if tokenized_for != served:
        raise Unavailable(
            f"the request was tokenized for the artifact {tokenized_for:.16}, and the engine serves {served}: "
            "a reload is under way; send it again"
        )


def pack_event(
    event: Event, ack: Ack | None, sequence_number: int = 0, artifact: str = "", *, prompt_thinks: bool = False
) -> Packed:
    """A uint8 array [num_bytes]. Events that are kept, and not sent, have no number and no artifact."""
    raw: dict[str, Any] = {
        "id": event.request_id,
        "usage": _usage_values(event.usage),
        "stages": _stages_values(event.stages),
    }
    if event.body is None:
        raw |= _body(event)
        if event.logprobs:
            raw["logprobs"] = [_raw_logprobs(entry) for entry in event.logprobs]
    if event.finish_reason is not None:
        raw["finish"] = event.finish_reason.value
    if event.error is not None:
        raw["error"] = (event.error_code, event.error)
    if event.cache_hit is not CacheHit.NONE:
        raw["cache"] = (event.cache_hit.value, event.cache_age_ms)
    if ack is not None:
        raw["ack"] = (ack.cell, ack.number)
    if sequence_number:
        raw["sequence"] = sequence_number
    if artifact:
        raw["artifact"] = artifact
    if prompt_thinks:
        raw["thinks"] = True
    return _pack(raw) if event.body is None else _packed_with(raw, event.body.members())


def pack_body(event: Event, pieces: Sequence[tuple[int, int | None]] | None = None) -> Body:
    """What of an event is the same for all who get it: token ids, where their text ends, log-probabilities. `pieces`:
    the tokens and the `text_bytes` of each; None is one piece. Packed so that the interpreter's lock is held for a
    moment at a time."""
    packed, start = list[BodyPiece](), 0
    for num_tokens, text_bytes in pieces or ((len(event.token_ids), event.text_bytes),):
        chosen = slice(start, start := start + num_tokens)
        token_ids = ",".join(map(str, event.token_ids[chosen])).encode()
        packed.append(BodyPiece(token_ids, _packed_logprobs(event.logprobs[chosen]), num_tokens, text_bytes))
    assert start == len(event.token_ids), f"pieces of {start} tokens, and there are {len(event.token_ids)}"
    return Body(tuple(packed), event.text_bytes, event.is_first)


def _packed_logprobs(entries: Sequence[TokenLogprobs]) -> bytes:
    chunks = (entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK))
    texts = (json.dumps([_raw_logprobs(entry) for entry in chunk], separators=(",", ":"))[1:-1] for chunk in chunks)
    return ",".join(texts).encode()


def _body(event: Event) -> dict[str, Any]:
    """But the log-probabilities."""
    raw: dict[str, Any] = {"tokens": event.token_ids}
    if event.text_bytes is not None:
        raw["text_bytes"] = event.text_bytes
    if event.is_first:
        raw["first"] = True
    return raw


def _raw_logprobs(entry: TokenLogprobs) -> tuple[int, float, Any]:
    return entry.token_id, entry.logprob, entry.top


def unpack_event(packed: Packed) -> tuple[Event, Ack | None]:
    """Raises InvalidRequest when `packed` did not come from `pack_event`."""
    sent = unpack_sent_event(packed)
    return sent.event, sent.ack


def unpack_sent_event(packed: Packed) -> SentEvent:
    """Raises InvalidRequest when `packed` did not come from `pack_event`."""
    raw = _unpack(packed, "event")
    try:
        return SentEvent(
            _event(raw),
            _ack(raw.get("ack")),
            integer("sequence", raw.get("sequence", 0)),
            text("artifact", raw.get("artifact", "")),
            flag("thinks", raw.get("thinks", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"event is not what the engine model writes: {error}") from None


def _event(raw: dict[str, Any]) -> Event:
    error_code, error = sequence("error", raw.get("error", ["INTERNAL", None]), 2)
    cache_hit, cache_age_ms = raw.get("cache", (CacheHit.NONE.value, 0.0))
    return Event(
        request_id=text("id", raw["id"]),
        token_ids=tuple(integer("tokens", token_id) for token_id in raw["tokens"]),
        usage=Usage(*(integer("usage", count) for count in raw["usage"])),
        stages=Stages(*(number("stages", ms, -MAX_NUMBER) for ms in raw["stages"])),
        finish_reason=FinishReason(raw["finish"]) if "finish" in raw else None,
        text_bytes=integer("text_bytes", raw["text_bytes"]) if "text_bytes" in raw else None,
        is_first=flag("first", raw.get("first", False)),
        logprobs=tuple(_logprobs(*entry) for entry in raw.get("logprobs", ())),
        error=None if error is None else text("error", error),
        error_code="" if error is None else _error_code(error_code),
        cache_hit=CacheHit(cache_hit),
        cache_age_ms=number("cache_age_ms", cache_age_ms),
    )


def _logprobs(token_id: Any, chosen: Any, top: Any) -> TokenLogprobs:
    ranked = tuple((integer("logprobs", other), logprob("logprobs", value)) for other, value in top)
    return TokenLogprobs(integer("logprobs", token_id), logprob("logprobs", chosen), ranked)


def _error_code(code: Any) -> str:
    if code not in CODES:
        raise InvalidRequest(f"error has the code {code!r:.40}; it must be one of {', '.join(CODES)}")
    return str(code)


def _ack(raw: Any) -> Ack | None:
    if raw is None:
        return None
    cell, number_of_event = sequence("ack", raw, 2)
    return Ack(integer("ack", cell), integer("ack", number_of_event, high=MAX_INT64))


def _pack(raw: dict[str, Any]) -> Packed:
    return np.frombuffer(json.dumps(raw, separators=(",", ":")).encode(), dtype=np.uint8)


def _packed_with(raw: dict[str, Any], body: bytes) -> Packed:
    head = json.dumps(raw, separators=(",", ":"))[:-1].encode()
    return np.frombuffer(b"".join((head, b",", body, b"}")), dtype=np.uint8)


def _unpack(packed: Packed, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(packed.tobytes())
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{name} is not JSON") from None
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{name} is {type(raw).__name__}, it must be a JSON object")
    return raw
