"""Sends one request, to one endpoint after the other as the retry rule says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tritonclient.grpc import service_pb2 as pb

from autoglm_client.exceptions import (
    AutoGLMError,
    ConnectionLost,
    ConnectTimeout,
    InvalidRequestError,
    ServerUnavailableError,
)
from autoglm_client.retries import RetryPolicy
from autoglm_client.timeouts import Limit
from autoglm_client.transport.requests import new_request_id

from .call import Call
from .failover import Endpoint, EndpointPool

_log = logging.getLogger("autoglm_client")
ENDPOINT_FAILURES = (ServerUnavailableError, ConnectTimeout, ConnectionLost)


class RequestLauncher:
    """The `Launcher` of one request. Each attempt has an id of its own, so that none is taken for another. `build`
    makes the request of an id, with or without the heartbeats that not every server knows."""

    def __init__(
        self,
        build: Callable[[str, bool], pb.ModelInferRequest],
        pool: EndpointPool,
        policy: RetryPolicy,
        connect_timeout: float | None,
        on_launch: Callable[[Call], None],
    ) -> None:
        self._build = build
        self._pool = pool
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._on_launch = on_launch
        self._failed_attempts = 0
        self._endpoint: Endpoint | None = None

    def launch(self) -> Call:
        self._endpoint = self._pool.pick()
        call = Call(
            self._endpoint.transport,
            self._build(new_request_id(), self._endpoint.knows_heartbeats),
            endpoint=self._endpoint.address,
            connect_timeout=self._connect_timeout,
        )
        self._on_launch(call)
        return call

    @property
    def num_attempts(self) -> int:
        """Those that were begun."""
        return self._failed_attempts + 1

    async def retry(self, error: AutoGLMError, limit: Limit | None) -> bool:
        assert self._endpoint is not None, "a retry follows a launch"
        if self._endpoint.knows_heartbeats and _is_about_heartbeats(error):
            self._endpoint.knows_heartbeats = False
            return True
        if isinstance(error, ENDPOINT_FAILURES):
            self._pool.failed(self._endpoint)
        self._failed_attempts += 1
        num_endpoints = len(self._pool.endpoints)
        if not self._policy.allows(error, failed_attempts=self._failed_attempts, endpoints=num_endpoints):
            return False
        if isinstance(error, ConnectionLost):  # what was computed of it, or may still be, is computed again
            _log.warning("%s; request %s is sent again", error, error.request_id)
        await _sleep(self._policy.delay_s(self._failed_attempts, endpoints=num_endpoints), error, limit)
        return True

    def leave(self, call: Call) -> None:
        owner = next((e for e in self._pool.endpoints if e.address == call.endpoint), None)
        assert owner is not None, "a call belongs to one of the endpoints"
        owner.canceller.cancel(call)

    def answered(self) -> None:
        assert self._endpoint is not None
        self._pool.answered(self._endpoint)


def _is_about_heartbeats(error: AutoGLMError) -> bool:
    """Triton's sentence about an input that a model does not have."""
    return isinstance(error, InvalidRequestError) and "unexpected inference input 'heartbeat_ms'" in str(error)


async def _sleep(seconds: float, error: AutoGLMError, limit: Limit | None) -> None:
    remaining = float("inf") if limit is None else limit.at - asyncio.get_running_loop().time()
    await asyncio.sleep(max(min(seconds, remaining), 0))
    if limit is not None and remaining < seconds:
        raise limit.exceeded() from error
