"""The Redis tier where one is set; its client is imported only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.metrics import Metrics
from autoglm_engine.settings.model import EngineSettings

if TYPE_CHECKING:
    from .tier import RedisTier


def load_redis_tier(settings: EngineSettings, metrics: Metrics, forget: Callable[[], object]) -> RedisTier | None:
    """None without a `redis_url`, or where no answers are kept. Raises InvalidRequest where the client is not
    installed."""
    if not settings.redis_url or settings.cache_mode == "off":
        return None
    try:
        from .tier import RedisTier
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"the setting redis_url needs the Python package {error.name}, which is not installed"
        ) from None
    return RedisTier(settings, metrics, forget=forget)
