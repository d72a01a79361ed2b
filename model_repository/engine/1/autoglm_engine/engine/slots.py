"""Which slot holds which tokens: the key/value memory as a table of free, busy and retained slots.

A finished slot is retained: its keys and values stay, so a later request of the same tenant with the same beginning
starts from them. What other tenants asked is out of its reach: how much was reused would tell it what they said. Busy
slots stay at low numbers, because a runner may compute every slot up to the highest busy one. What is worth keeping is
therefore moved out of the way, not overwritten: a copy costs far less than computing it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import EngineError

_MIN_COPY = 16  # tokens; fewer are computed again as fast as they are copied
_BLOCK = 256  # tokens compared at a time, so that a long slot costs little when its beginning differs


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys and values of the first `length` tokens of slot `source` go to slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Allocation:
    """`copies` are to be made in this order, before the slot is written; then it holds `num_reused` prompt tokens."""

    slot: int
    num_reused: int
    copies: tuple[Copy, ...] = ()


class SlotTable:
    """`tokens[slot, :length[slot]]` are the tokens whose keys and values the slot holds, for `tenant[slot]`. A busy
    slot's owner writes its tokens into its row and calls `advance` once they are computed. While `generation[slot]`
    stays, the slot's content is only added to or forgotten. One thread uses it.
    """

    def __init__(self, num_slots: int, max_length: int, *, prefix_reuse: bool = True) -> None:
        self.tokens: TokenIds = np.zeros((num_slots, max_length), np.int32)
        self.length: npt.NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.generation: npt.NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.tenant: npt.NDArray[np.object_] = np.full(num_slots, "", np.object_)  # whose tokens a slot holds
        self._prefix_reuse = prefix_reuse
        self._free = set(range(num_slots))
        self._busy: set[int] = set()
        self._retained: set[int] = set()
        self._last_use = np.zeros(num_slots, np.int64)
        self._uses = 0

    @property
    def num_slots(self) -> int:
        return len(self.length)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_busy(self) -> int:
        return len(self._busy)

    @property
    def num_retained(self) -> int:
        return len(self._retained)

    @property
    def can_allocate(self) -> bool:
        return bool(self._free or self._retained)

    def num_reusable(self, prompt: TokenIds, tenant: str = "") -> int:
        """How many of its tokens `allocate` would reuse now."""
        if not self.can_allocate:
            return int(self._match_lengths(prompt[:-1], tenant).max())
        return self._best_source(self._match_lengths(prompt[:-1], tenant), self._next_slot)[1]

    def allocate(self, prompt: TokenIds, tenant: str = "") -> Allocation:
        """Make the lowest slot that is not busy busy for `prompt` of `tenant`. Its last token is never counted as
        reused, because its logits are needed."""
        assert self.can_allocate, "allocate() without a slot to give"
        target = self._next_slot
        matched = self._match_lengths(prompt[:-1], tenant)
        source, num_reused = self._best_source(matched, target)
        copies: list[Copy] = []
        if (shelter := self._shelter(target, int(matched[target]), source)) is not None:
            copies.append(self._copy(target, shelter, int(self.length[target])))
            self._last_use[shelter] = self._last_use[target]
        if source != target:
            copies.append(self._copy(source, target, num_reused))
            self._touch(source)
            self._forget_if_contained(source, num_reused)
        self._take(target, num_reused)
        self.tenant[target] = tenant
        return Allocation(target, num_reused, tuple(copies))

    def advance(self, slot: int, length: int) -> None:
        """The first `length` tokens of the busy slot's row are computed."""
        self.length[slot] = length

    def release(self, slot: int, *, retain: bool = True) -> None:
        """The owner is done; without `retain` (or prefix reuse, or content) the slot is forgotten."""
        assert slot in self._busy, f"slot {slot} is released but not busy"
        self._busy.remove(slot)
        if retain and self._prefix_reuse and self.length[slot]:
            self._retained.add(slot)
            self._touch(slot)
        else:
            self._free.add(slot)
            self.length[slot] = 0

    def forget_retained(self) -> None:
        """Trust no kept content any more: after a failure of the runner, nobody knows what was written."""
        for slot in self._retained:
            self.length[slot] = 0
        self._free |= self._retained
        self._retained.clear()

    def reset(self) -> None:
        """Make every slot free and empty."""
        self.length[:] = 0
        self._free = set(range(self.num_slots))
        self._busy.clear()
        self._retained.clear()

    def check(self) -> None:
        """Every slot is in exactly one state, free ones hold nothing; raise otherwise."""
        states = sorted((*self._free, *self._busy, *self._retained))
        if states != list(range(self.num_slots)):
            raise EngineError(
                f"the slot table is damaged: {self.num_free} free, {self.num_busy} busy and {self.num_retained} "
                f"retained slots do not make {self.num_slots}"
            )
        if any(self.length[slot] for slot in self._free):
            raise EngineError("the slot table is damaged: a free slot holds tokens")

    @property
    def _next_slot(self) -> int:
        return min(self._free | self._retained)

    def _best_source(self, matched: npt.NDArray[np.int64], target: int) -> tuple[int, int]:
        """(slot, number of tokens to reuse); the target itself where no other is worth a copy."""
        best = int(matched.argmax())
        source = best if matched[best] >= max(_MIN_COPY, matched[target] + 1) else target
        return source, int(matched[source])

    def _match_lengths(self, prefix: TokenIds, tenant: str) -> npt.NDArray[np.int64]:
        """How many leading tokens of `prefix` each slot holds, int64 `[num_slots]`; none where it is another
        tenant's."""
        usable = np.where(self.tenant == tenant, len(prefix) if self._prefix_reuse else 0, 0)
        limits = np.minimum(self.length, usable)
        matched = np.zeros_like(limits)
        alive = np.flatnonzero(limits)
        for begin in range(0, len(prefix), _BLOCK):
            if not alive.size:
                break
            wanted = prefix[begin : begin + _BLOCK]
            equal = self.tokens[alive, begin : begin + len(wanted)] == wanted
            run = np.where(equal.all(axis=1), len(wanted), equal.argmin(axis=1))
            matched[alive] = np.minimum(begin + run, limits[alive])
            alive = alive[(run == len(wanted)) & (limits[alive] > begin + len(wanted))]
        return matched

    def _shelter(self, target: int, num_matched: int, source: int) -> int | None:
        """The slot that takes over the target's retained content before it is overwritten; None lets it go."""
        if target not in self._retained or self.length[target] - num_matched < _MIN_COPY:
            return None
        others = (self._free | self._retained) - {target, source}
        victim = min(others, key=lambda slot: (slot not in self._free, self._last_use[slot], -slot), default=None)
        if victim is None or (victim in self._retained and self._last_use[victim] > self._last_use[target]):
            return None
        return victim

    def _copy(self, source: int, target: int, length: int) -> Copy:
        self.tokens[target, :length] = self.tokens[source, :length]
        self.length[target] = length
        self.generation[target] += 1
        self.tenant[target] = self.tenant[source]
        if target in self._free:
            self._free.remove(target)
            self._retained.add(target)
        return Copy(source, target, length)

    def _forget_if_contained(self, slot: int, length: int) -> None:
        """What was just copied from a retained slot is nearly all it holds: two copies would only push others out."""
        if slot in self._retained and self.length[slot] - length < _MIN_COPY:
            self._retained.remove(slot)
            self._free.add(slot)
            self.length[slot] = 0

    def _take(self, slot: int, length: int) -> None:
        self._free.discard(slot)
        self._retained.discard(slot)
        self._busy.add(slot)
        self.length[slot] = length
        self.generation[slot] += 1

    def _touch(self, slot: int) -> None:
        self._uses += 1
        self._last_use[slot] = self._uses
