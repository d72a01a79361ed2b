"""The shared requests under way, and who reads which of them. Whoever calls holds the lock of the caching engine."""

from __future__ import annotations

from autoglm_engine.core import CacheHit, Request

from .shared_request import SharedRequest, Subscriber
from .tiers import Tier


class Subscriptions:
    """`by_id` is the gate's, and changed here alone."""

    def __init__(self, by_id: dict[str, SharedRequest]) -> None:
        self._by_id = by_id
        self._by_key: dict[tuple[bytes, tuple[Tier, ...]], SharedRequest] = {}  # those that others may join
        self._subscribers: dict[str, Subscriber] = {}  # by the id of their request
        self.num_followers = 0  # subscribers that joined what another began

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._subscribers

    @property
    def requests(self) -> list[SharedRequest]:
        return list(self._by_id.values())

    @property
    def subscribers(self) -> list[Subscriber]:
        return list(self._subscribers.values())

    def find(self, shared_id: str) -> SharedRequest | None:
        return self._by_id.get(shared_id)

    def subscriber(self, request_id: str) -> Subscriber | None:
        return self._subscribers.get(request_id)

    def joinable(self, key: bytes, tiers: tuple[Tier, ...]) -> SharedRequest | None:
        """Who would take what a tier has never reads a shared request together with who would not."""
        return self._by_key.get((key, tiers))

    def begin(self, shared: SharedRequest, now: float) -> None:
        self._by_id[shared.id] = shared
        self._subscribe(shared, shared.request, CacheHit.NONE, now)

    def undo(self, shared: SharedRequest) -> None:
        """It could not begin."""
        del self._by_id[shared.id], self._subscribers[shared.request.id]

    def open(self, shared: SharedRequest) -> None:
        """Others may join it."""
        self._by_key[shared.join_key] = shared

    def close(self, shared: SharedRequest) -> None:
        """Nobody joins it from now on."""
        if self._by_key.get(shared.join_key) is shared:
            del self._by_key[shared.join_key]

    def close_all(self) -> None:
        self._by_key.clear()

    def follow(self, shared: SharedRequest, request: Request, now: float) -> None:
        self.num_followers += 1
        self._subscribe(shared, request, CacheHit.COALESCED, now)

    def end(self, shared: SharedRequest) -> None:
        """Its subscribers are still to be told."""
        del self._by_id[shared.id]
        self.close(shared)

    def forget(self, subscriber: Subscriber) -> None:
        del self._subscribers[subscriber.request.id]
        self.num_followers -= subscriber.hit is CacheHit.COALESCED

    def outdate(self, key: bytes) -> None:
        """What is under way would otherwise be kept, when it ends, in place of the answer that is computed anew."""
        for shared in [shared for shared in self._by_id.values() if shared.key == key]:
            shared.may_keep = False
            self.close(shared)

    def outdate_found(self, key: bytes) -> None:
        """Who asks other tiers does not join a refresh, and may find what was there before it ended."""
        for shared in self._by_id.values():
            shared.may_keep_found = shared.may_keep_found and shared.key != key

    def _subscribe(self, shared: SharedRequest, request: Request, hit: CacheHit, now: float) -> None:
        subscriber = Subscriber(request, shared, hit, now)
        shared.subscribers.append(subscriber)
        self._subscribers[request.id] = subscriber
