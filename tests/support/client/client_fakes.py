"""A server that lives in the test: the client's transport, answering from a script."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoglm_client.exceptions import AutoGLMError
from tritonclient.grpc import service_pb2 as pb

CALL_FORM = {
    "opening": '<tool_call>\n{"name": "',
    "middle": '", "arguments": ',
    "closing": "}\n</tool_call>",
    "between": '}\n</tool_call>\n<tool_call>\n{"name": "',
    "name_field": "name",
    "arguments_field": "arguments",
}


@dataclass
class Script:
    """What happens to one request: words stream `pause_s` apart; `errors` are raised by the first attempts."""

    words: Sequence[str] = ("one ", "two ", "three")
    pause_s: float = 0.0
    finish_reason: str = "length"
    connect_errors: list[Exception] = field(default_factory=list)
    errors: list[AutoGLMError] = field(default_factory=list)  # raised by the stream before its first response
    fail_after: tuple[int, AutoGLMError] | None = None  # (number of words, error)
    heartbeats: int = 0
    kept: tuple[str, float] = ("none", 0.0)  # (cache hit, its age in ms)
    numbers: Sequence[int] | None = None  # of the responses, heartbeats included; None: the server sends none
    connect_s: float = 0.0
    prompt_thinks: bool = False


class FakeTransport:
    def __init__(self, script: Script | Callable[[pb.ModelInferRequest], Script] | None = None) -> None:
        self.script = script or Script()
        self.requests: list[pb.ModelInferRequest] = []
        self.cancelled: set[str] = set()
        self.controls: list[dict[str, Any]] = []
        self.running: set[str] = set()
        self.max_running = 0
        self.aborted: list[str] = []  # streams that were not read to their end: the call would have been cancelled
        self.closed = False
        self.ignored_cancels = 0
        self.limits: dict[str, Any] = {
            "max_length": 2048,
            "vocab_size": 50_000,
            "num_slots": 16,
            "call_form": CALL_FORM,
        }

    async def connect(self, timeout: float | None) -> None:
        script = self.script if isinstance(self.script, Script) else Script()
        if script.connect_errors:
            raise script.connect_errors.pop(0)
        await asyncio.sleep(script.connect_s)

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        if request.model_name.endswith("engine"):
            yield self._control(json.loads(request.raw_input_contents[0][4:]))
            return
        self.requests.append(request)
        if request.model_name.endswith("tokenizer"):
            yield _tokens_response(request.model_name)
            return
        self.running.add(request.id)
        self.max_running = max(self.max_running, len(self.running))
        script = self.script if isinstance(self.script, Script) else self.script(request)
        complete = False
        try:
            async for response in self._answer(request, script):
                yield response
            complete = True
        except AutoGLMError:
            complete = True
            raise
        finally:
            self.running.discard(request.id)
            if not complete:
                self.aborted.append(request.id)

    async def unary(self, method: str, request: Any, timeout: float | None) -> Any:
        match method:
            case "ServerLive":
                return pb.ServerLiveResponse(live=True)
            case "ServerReady":
                return pb.ServerReadyResponse(ready=True)
            case "ModelReady":
                return pb.ModelReadyResponse(ready=True)
            case "ModelStatistics":
                entry = pb.ModelStatistics(name="autoglm", version="1", inference_count=7, execution_count=6)
                return pb.ModelStatisticsResponse(model_stats=[entry])
            case "ModelMetadata":
                return pb.ModelMetadataResponse(name=request.name, platform="ensemble")
        raise AssertionError(f"unexpected call {method}")

    async def close(self) -> None:
        self.closed = True

    async def _answer(self, request: pb.ModelInferRequest, script: Script) -> AsyncIterator[pb.ModelInferResponse]:
        if script.errors:
            raise script.errors.pop(0)
        numbers = iter(script.numbers or ())
        for _ in range(script.heartbeats):
            yield response("", "", 0, number=next(numbers, None))
        streamed, said = wants_stream(request), ""
        for number, word in enumerate(script.words, start=1):
            await asyncio.sleep(script.pause_s)
            said = word if streamed else said + word
            is_last = number == len(script.words)
            if script.fail_after and number > script.fail_after[0]:
                raise script.fail_after[1]
            if request.id in self.cancelled:
                yield response("", "cancelled", number, number=next(numbers, None))
                return
            if streamed or is_last:
                finish_reason = script.finish_reason if is_last else ""
                yield response(
                    said,
                    finish_reason,
                    number,
                    kept=script.kept,
                    number=next(numbers, None),
                    prompt_thinks=script.prompt_thinks,
                )
        yield end_mark()

    def _control(self, command: dict[str, Any]) -> pb.ModelInferResponse:
        self.controls.append(command)
        if "cancel" in command:
            if self.ignored_cancels > 0:
                self.ignored_cancels -= 1
            else:
                self.cancelled |= set(command["cancel"])
            return control_response({"cancelled": len(command["cancel"])})
        if "limits" in command:
            return control_response(self.limits)
        return control_response({"running": len(self.running)})


def _tokens_response(model: str) -> pb.ModelInferResponse:
    """Three tokens, whatever is asked."""
    made = pb.ModelInferResponse(model_name=model)
    told = json.dumps({"token_strs": ["a", "b", "c"], "text": "abc"}).encode()
    for name, raw in (("token_ids", struct.pack("<3i", 5, 6, 7)), ("request", told)):
        made.outputs.add(name=name)
        made.raw_output_contents.append(raw)
    return made


def inputs_of(request: pb.ModelInferRequest) -> dict[str, bytes]:
    return {tensor.name: raw for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)}


def wants_stream(request: pb.ModelInferRequest) -> bool:
    return inputs_of(request)["stream"] == b"\x01"


def text_of(request: pb.ModelInferRequest) -> str:
    return inputs_of(request)["text_input"][4:].decode()


def string_bytes(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def response(
    text: str,
    finish_reason: str,
    num_tokens: int,
    logprobs: str = "[]",
    *,
    kept: tuple[str, float] = ("none", 0.0),
    number: int | None = None,
    prompt_thinks: bool = False,
) -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name="autoglm")
    values: dict[str, bytes] = {
        "text_output": string_bytes(text),
        "finish_reason": string_bytes(finish_reason),
        "prompt_tokens": struct.pack("<i", 3),
        "completion_tokens": struct.pack("<i", num_tokens),
        "cached_tokens": struct.pack("<i", 1),
        "stage_times": struct.pack("<6f", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        "logprobs_output": string_bytes(logprobs),
        "cache_hit": string_bytes(kept[0]),
        "cache_age_ms": struct.pack("<f", kept[1]),
    }
    if prompt_thinks:
        values["prompt_thinks"] = b"\1"
    if number is not None:
        values["sequence_number"] = struct.pack("<i", number)
    for name, raw in values.items():
        made.outputs.add(name=name)
        made.raw_output_contents.append(raw)
    return made


def end_mark() -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name="autoglm")
    made.parameters["triton_final_response"].bool_param = True
    return made


def control_response(answer: dict[str, Any]) -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name="engine")
    made.outputs.add(name="event")
    made.raw_output_contents.append(json.dumps(answer).encode())
    return made
