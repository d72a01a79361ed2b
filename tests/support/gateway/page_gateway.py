"""A gateway for the page's tests, in front of a server that answers by what the last message says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from autoglm_client.exceptions import InvalidRequestError, QueueFullError, ServerError
from autoglm_gateway.settings.model import GatewaySettings
from tritonclient.grpc import service_pb2 as pb

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of
from tests.support.gateway.gateway_server import GatewayThread, fake_client

MARKUP = '<img src="/x" onerror="window.hurt=1"><script>window.hurt=1</script><b>bold</b> &amp; "quoted"'
TEXT = "Grüße, 你好 🙂\n  indented"


def script(request: pb.ModelInferRequest) -> Script:
    """By the last message of the conversation."""
    match json.loads(inputs_of(request)["messages"][4:])[-1]["content"]:
        case "slowly":
            return Script([f"{number} " for number in range(2000)], pause_s=0.01)
        case "markup":
            return Script([MARKUP[:20], MARKUP[20:]])
        case "kept":
            return Script(kept=("exact", 12_000.0))
        case "text":
            return Script(list(TEXT), pause_s=0.002)
        case "refused":
            return Script(errors=[InvalidRequestError("top_k is 9: it must be 0 ... 5")])
        case "full":
            return Script(errors=[QueueFullError("the queue is full")] * 99)
        case "breaks":
            return Script(["one ", "two"], fail_after=(1, ServerError("the engine broke")))
    return Script(pause_s=0.002)


@contextmanager
def gateway_before(transport: FakeTransport, settings: GatewaySettings | None = None) -> Iterator[GatewayThread]:
    with GatewayThread(settings or GatewaySettings(), partial(fake_client, transport=transport)) as running:
        yield running
