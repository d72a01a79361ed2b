"""Builds the protobuf requests. Pure: no connection, no clock.

A tensor's bytes are those of Triton's binary tensor data extension: little-endian numbers; a string is its length as a
uint32 followed by its UTF-8 bytes.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import InvalidRequestError
from autoglm_client.images.messages import split_images
from autoglm_client.model_names import ENSEMBLE, ModelNames
from autoglm_client.option_fields import OPTION_KINDS, OptionKind
from autoglm_client.options import GenerationOptions
from autoglm_client.types import Conversation, Message, Prompt

_CONTROL = "control"
_NUMBER_FORMATS = {"INT32": "<i", "INT64": "<q", "FP32": "<f"}


def new_request_id() -> str:
    return uuid.uuid4().hex


def generation_request(
    prompt: Prompt, options: GenerationOptions, *, stream: bool, request_id: str, model: str = ENSEMBLE
) -> pb.ModelInferRequest:
    """Raises `InvalidRequestError` where a value cannot be put on the wire; ranges are checked by the server."""
    request = _empty_request(model, request_id)
    _add_prompt(request, prompt)
    for name, kind in OPTION_KINDS.items():
        value = getattr(options, name)
        if value is not None:
            _add_option(request, name, kind, value)
    _add(request, "stream", "BOOL", [struct.pack("<?", stream)])
    return request


def control_request(command: Mapping[str, Any], model: str = ENSEMBLE) -> pb.ModelInferRequest:
    """A direct call of the engine behind the ensemble `model`: `{"cancel": [request_id, ...]}`, `{"stats": true}`,
    `{"limits": true}` or `{"flush": true}`."""
    request = _empty_request(ModelNames.of(model).engine, new_request_id())
    _add(request, _CONTROL, "BYTES", [_string_bytes(_CONTROL, json.dumps(command))])
    return request


def token_request(
    command: Mapping[str, Any],
    prompt: Prompt | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tenant: str | None = None,
    model: str = ENSEMBLE,
) -> pb.ModelInferRequest:
    """A direct call of the tokenizer before the ensemble `model`: `{"tokenize": {option: bool, ...}}` of `prompt`, or
    `{"detokenize": [token_id, ...]}`. Raises `InvalidRequestError`."""
    request = _empty_request(ModelNames.of(model).tokenizer, new_request_id())
    if prompt is not None:
        _add_prompt(request, prompt)
    named = {"tools": tools, "chat_template_kwargs": chat_template_kwargs, "tenant": tenant}
    for name, value in named.items():
        if value is not None:
            _add_option(request, name, OPTION_KINDS[name], value)
    _add(request, _CONTROL, "BYTES", [_string_bytes(_CONTROL, json.dumps(command))])
    return request


def is_control(request: pb.ModelInferRequest) -> bool:
    return any(tensor.name == _CONTROL for tensor in request.inputs)


def _add_prompt(request: pb.ModelInferRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _add(request, "text_input", "BYTES", [_string_bytes("the prompt", prompt)])
        return
    turns, images = split_images(_turns(prompt))
    _add(request, "messages", "BYTES", [_string_bytes("messages", _json("messages", turns))])
    if images:
        _add(request, "images", "BYTES", [struct.pack("<I", len(file)) + file for file in images])


def _turns(conversation: Conversation) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": turn.content} if isinstance(turn, Message) else dict(turn)
        for turn in conversation
    ]


def _empty_request(model: str, request_id: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    # Without it, a decoupled model that ends with no further response leaves the client waiting.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _add(request: pb.ModelInferRequest, name: str, datatype: str, elements: Sequence[bytes]) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=[1, len(elements)])
    request.raw_input_contents.append(b"".join(elements))


def _add_option(request: pb.ModelInferRequest, name: str, kind: OptionKind, value: Any) -> None:
    if kind in ("STRING", "STRINGS"):
        if strings := _strings(name, value) if kind == "STRINGS" else [_text(name, value)]:
            _add(request, name, "BYTES", [_string_bytes(name, text) for text in strings])
    elif kind == "JSON":
        _add(request, name, "BYTES", [_string_bytes(name, _json(name, value))])
    elif kind == "BOOL":
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{name} must be true or false, got {value!r}")
        _add(request, name, kind, [struct.pack("<?", value)])
    else:
        _add(request, name, kind, [_number_bytes(name, kind, value)])


def _json(name: str, value: Any) -> str:
    """A text is taken for JSON already."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} cannot be written as JSON: {error}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, got {value!r:.100}")
    return value


def _strings(name: str, value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequestError(f"{name} must be a string or a sequence of strings, got {value!r:.100}")
    return list(strings)


def _number_bytes(name: str, datatype: str, value: Any) -> bytes:
    wanted = "a number" if datatype == "FP32" else "a whole number"
    if isinstance(value, bool) or not isinstance(value, (int, float) if datatype == "FP32" else int):
        raise InvalidRequestError(f"{name} must be {wanted}, got {value!r:.100}")
    try:
        return struct.pack(_NUMBER_FORMATS[datatype], value)
    except (struct.error, OverflowError):
        raise InvalidRequestError(f"{name} must be {wanted} that fits into {datatype}, got {value!r:.100}") from None


def _string_bytes(name: str, text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name} is not valid Unicode at character {error.start}: a lone surrogate") from None
    return struct.pack("<I", len(raw)) + raw
