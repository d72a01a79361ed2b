"""The layer that knows who asks, and lets in what a caller may ask."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from autoglm_gateway.addresses import is_loopback
from autoglm_gateway.caller import Caller
from autoglm_gateway.errors import ApiError
from autoglm_gateway.failures import failure
from autoglm_gateway.paths import HEALTH
from autoglm_gateway.settings.keys import Key, KeyRing
from autoglm_gateway.settings.model import GatewaySettings

from .limits import Limits, Meter

OPEN_PATHS = frozenset({"/", "/favicon.ico", "/docs", "/docs/oauth2-redirect", "/openapi.json"}) | HEALTH
OPEN_FOLDER = "/page/"  # what the page at / loads
METRICS_PATH = "/metrics"
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_CHALLENGE = 'Bearer realm="autoglm"'


class Guard:
    """Pure ASGI. Without keys everybody is let in, under one common limit, but no web page of elsewhere where the
    gateway is this machine's own. With keys, all but what `is_open` needs one."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app, self._ring, self._settings = app, KeyRing(settings.keys), settings
        default = Limits(settings.requests_per_minute, settings.concurrency)
        self._anybody, self._unlimited = Meter(default), Meter(Limits())
        self._meters = {key.tenant: Meter(_limits(key, default)) for key in settings.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none
            return await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        if scope["type"] != "http" or is_open(scope["path"]):
            return await self._app(scope, receive, send)
        try:
            places = self._admit(scope).enter()
        except ApiError as error:
            return await _refuse(error, scope, receive, send)
        scope["state"]["places"] = places
        try:
            await self._app(scope, receive, send)
        finally:
            places.leave()

    def _admit(self, scope: Scope) -> Meter:
        """What the request counts for. Raises ApiError."""
        state = scope.setdefault("state", {})
        if not self._ring.keys:
            self._check_origin(scope)
            state["caller"] = Caller(priority=self._settings.priority)
            return self._unlimited if scope["path"] == METRICS_PATH else self._anybody
        key = self._key(scope)
        state["caller"] = Caller(key.tenant, self._settings.priority if key.priority is None else key.priority)
        if scope["path"] != METRICS_PATH:
            return self._meters[key.tenant]
        if not key.metrics:
            raise ApiError(403, f"the key of {key.tenant} may not read {METRICS_PATH}", code="forbidden")
        return self._unlimited

    def _key(self, scope: Scope) -> Key:
        said = _headers(scope, b"authorization")
        if not said:
            raise ApiError(
                401, "an API key is missing: send the header `Authorization: Bearer KEY`", code="missing_api_key"
            )
        scheme, _, value = said[0].strip().partition(b" ")
        if len(said) > 1 or scheme.lower() != b"bearer":
            raise ApiError(
                401, "the API key must come in one header, `Authorization: Bearer KEY`", code="missing_api_key"
            )
        key = self._ring.find(value.strip())
        if key is None:
            raise ApiError(401, "the API key is not one of this server's", code="invalid_api_key")
        return key

    def _check_origin(self, scope: Scope) -> None:
        """Browsers say which page asks. A name of elsewhere that was made to point here (DNS rebinding) is such a page,
        too."""
        if self._settings.open:
            return
        for said in _headers(scope, b"origin"):
            origin = said.decode("latin-1")
            if not _is_local(origin) and not {origin, "*"} & set(self._settings.allow_origins):
                sentence = f"pages of {origin!r:.100} may not use this gateway; --allow-origin admits them"
                raise ApiError(403, sentence, code="forbidden_origin")


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response = failure(error)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = _CHALLENGE
    await response(scope, receive, send)


def _limits(key: Key, default: Limits) -> Limits:
    requests = default.requests_per_minute if key.requests_per_minute is None else key.requests_per_minute
    return Limits(requests, default.concurrency if key.concurrency is None else key.concurrency)


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for known, value in scope["headers"] if known == name]


def _is_local(origin: str) -> bool:
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False
