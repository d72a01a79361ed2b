"""Control requests: a word with the engine itself, past the ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exceptions import ProtocolError
from .requests import control_request
from .responses import parse_control
from .transport import Transport


async def send_control(
    transport: Transport, command: Mapping[str, Any], connect_timeout: float | None
) -> dict[str, Any]:
    """`{"cancel": [request_id, ...]}` or `{"stats": true}`; reads the stream to its end, as every stream must be."""
    await transport.connect(connect_timeout)
    answers = [response async for response in transport.stream(control_request(command)) if response.outputs]
    if not answers:
        raise ProtocolError("the engine gave no answer to a control request")
    return parse_control(answers[0])
