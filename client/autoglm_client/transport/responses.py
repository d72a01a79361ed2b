"""Reads the protobuf responses, and turns what went wrong into typed errors. Pure: no connection, no clock."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import (
    AutoGLMError,
    InvalidRequestError,
    NotCachedError,
    ProtocolError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)
from autoglm_client.types import Candidate, ModelCounters, ModelInfo, Piece, StageTimes, TensorInfo, TokenLogprob, Usage

_OUTPUTS = ("text_output", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens", "stage_times")
_INT32 = struct.Struct("<i")
_FP32 = struct.Struct("<f")
_NO_HIT, _NO_AGE = struct.pack("<I4s", 4, b"none"), struct.pack("<f", 0.0)  # of a server without a cache
_TRITON_PREFIX = re.compile(r"^(in ensemble '[^']*', )?(Failed to process the request\(s\)[^,]*, message: )?")
_CODE_MARK = re.compile(r"(?P<code>[A-Z_]{5,}): ")
_BUSY = re.compile(r"\bqueue|requests wait")
_MISS = re.compile(r"\bnot cached\b")
# Triton of a model that is there and is not loaded, and of what reaches a step of the ensemble after SIGTERM.
_NOT_LOADED = re.compile(r"has no available versions|Server is stopping|Server not ready")
_TRITON_REFUSAL = re.compile(
    r"unexpected (inference input|shape|datatype|data-type)|unknown model|expected \d+ inputs|byte size"
)
_NO_IMAGES = re.compile(r"unexpected inference input 'images'")
_OLDER = "this server takes no images: its model repository is of a release that had none"
# What Triton says of it names a region and advises who runs the server.
_TOO_LARGE = re.compile(r"Failed to increase the shared memory pool size")
_SEND_LESS = (
    "the request, or its answer, is larger than the shared memory that the server's models have for one; send less"
)


def parse_generation(response: pb.ModelInferResponse, elapsed_ms: float = 0.0) -> Piece | None:
    """One response of the ensemble; None for a heartbeat and for Triton's bare end mark. `elapsed_ms`: since the
    request was sent; what the server's stages do not explain of it is the network's. Raises `ProtocolError` where the
    response is not what the contract says.
    """
    tensors = _tensors(response)
    if not tensors:
        return None
    if missing := [name for name in _OUTPUTS if name not in tensors]:
        raise ProtocolError(f"the server's response lacks the tensor {missing[0]!r}", request_id=response.id)
    try:
        piece = _piece(tensors, elapsed_ms)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"the server's response cannot be read: {error}", request_id=response.id) from None
    is_heartbeat = not piece.text and piece.finish_reason is None and not piece.logprobs
    return None if is_heartbeat else piece


def parse_control(response: pb.ModelInferResponse) -> dict[str, Any]:
    """The engine's answer to a control request: JSON in the tensor `event`."""
    try:
        answer = json.loads(_tensors(response)["event"])
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"the engine's answer to a control request cannot be read: {error!r}") from None
    if not isinstance(answer, dict):
        raise ProtocolError(f"the engine answered {answer!r:.100} to a control request, not a JSON object")
    return answer


def parse_tokens(response: pb.ModelInferResponse) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The tokenizer's answer to a question about tokens: their ids, and JSON in the tensor `request`."""
    tensors = _tensors(response)
    try:
        ids, told = tensors["token_ids"], json.loads(tensors["request"])
        return struct.unpack(f"<{len(ids) // 4}i", ids), dict(told)
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise ProtocolError(f"the tokenizer's answer cannot be read: {error!r:.200}") from None


def error_of(text: str, code: str = "") -> AutoGLMError:
    """The typed error for a text the server sent. Streamed errors carry no status, only a text: the models of this
    project begin theirs with the code; Triton's own are told by their words. `code` is a gRPC status, where there is
    one.
    """
    sentence = " ".join(_TRITON_PREFIX.sub("", text).split()) or "the server gave no reason"
    if marked := _CODE_MARK.match(sentence):
        code, sentence = marked["code"], sentence[marked.end() :]
    elif _NOT_LOADED.search(sentence):
        code = "UNAVAILABLE"
    elif _TOO_LARGE.match(sentence):
        return InvalidRequestError(_SEND_LESS)
    elif _NO_IMAGES.search(sentence):
        return InvalidRequestError(_OLDER)
    match code:
        case "NOT_FOUND" if _MISS.search(sentence):
            return NotCachedError(sentence)
        case "INVALID_ARG" | "INVALID_ARGUMENT" | "NOT_FOUND" | "OUT_OF_RANGE":
            return InvalidRequestError(sentence)
        case "UNAVAILABLE":
            return QueueFullError(sentence) if _BUSY.search(sentence) else ServerUnavailableError(sentence)
        case "" if _TRITON_REFUSAL.search(sentence):
            return InvalidRequestError(sentence)
        case _:
            return ServerError(sentence)


def parse_model_info(metadata: pb.ModelMetadataResponse, version: str, *, ready: bool) -> ModelInfo:
    def tensors(infos: Any) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(info.name, info.datatype, tuple(info.shape)) for info in infos)

    return ModelInfo(
        metadata.name, version, metadata.platform, ready, tensors(metadata.inputs), tensors(metadata.outputs)
    )


def parse_counters(statistics: pb.ModelStatistics) -> ModelCounters:
    times = statistics.inference_stats
    compute_ns = times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
    return ModelCounters(
        requests=statistics.inference_count,
        executions=statistics.execution_count,
        succeeded=times.success.count,
        failed=times.fail.count,
        queue_ms=times.queue.ns / 1e6,
        compute_ms=compute_ns / 1e6,
    )


def _tensors(response: pb.ModelInferResponse) -> dict[str, bytes]:
    return {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=False)}


def _piece(tensors: dict[str, bytes], elapsed_ms: float) -> Piece:
    return Piece(
        text=_string(tensors["text_output"]),
        finish_reason=_string(tensors["finish_reason"]) or None,
        usage=Usage(
            _INT32.unpack(tensors["prompt_tokens"])[0],
            _INT32.unpack(tensors["completion_tokens"])[0],
            _INT32.unpack(tensors["cached_tokens"])[0],
        ),
        stages=_stages(tensors["stage_times"], elapsed_ms),
        logprobs=_logprobs(tensors.get("logprobs_output", b"")),
        cache_hit=_string(tensors.get("cache_hit", _NO_HIT)),
        cache_age_ms=_FP32.unpack(tensors.get("cache_age_ms", _NO_AGE))[0],
        prompt_thinks=tensors.get("prompt_thinks", b"\0") != b"\0",
    )


def _stages(raw: bytes, elapsed_ms: float) -> StageTimes:
    """Of 5 numbers where the server knows no semantic cache, else of 6."""
    queue, tokenize, prefill, decode, detokenize, *rest = struct.unpack(f"<{5 if len(raw) == 20 else 6}f", raw)
    embed = rest[0] if rest else 0.0
    network = max(elapsed_ms - (queue + tokenize + prefill + decode + detokenize + embed), 0.0)
    return StageTimes(queue, tokenize, prefill, decode, detokenize, embed, network)


def _string(raw: bytes) -> str:
    (length,) = struct.unpack_from("<I", raw)
    if len(raw) != 4 + length:
        raise ValueError(f"a string tensor of {len(raw)} bytes says it has {length}")
    return raw[4:].decode()


def _logprobs(raw: bytes) -> tuple[TokenLogprob, ...]:
    text = _string(raw) if raw else ""
    if text in ("", "[]"):
        return ()
    return tuple(
        TokenLogprob(
            token_id=entry["token_id"],
            token=entry["token"],
            logprob=entry["logprob"],
            top=tuple(Candidate(c["token_id"], c["token"], c["logprob"]) for c in entry["top"]),
        )
        for entry in json.loads(text)
    )
