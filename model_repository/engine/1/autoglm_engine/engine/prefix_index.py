"""Which beginnings the slots hold, as hashes of whole blocks, so that many waiting requests are looked up cheaply.

A chain is the list of hashes of a text's first block, its first two blocks, and so on: texts with equal hashes at one
place begin alike up to there, and are of one tenant, since whose turn it is would else tell what others asked. It is
for choosing whom to serve, never for what is reused: the slot table compares tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

import numpy as np

from autoglm_engine.core import TokenIds

from .slots import SlotTable

BLOCK = 16  # tokens; fewer in common are not worth a choice

Chain = list[int]


def chain_of(tokens: TokenIds, tenant: str) -> Chain:
    """One hash for each whole block of `tokens`."""
    chain: Chain = []
    extend(chain, tokens, tenant)
    return chain


def extend(chain: Chain, tokens: TokenIds, tenant: str) -> None:
    """Add the blocks of `tokens` that the chain lacks."""
    before = chain[-1] if chain else hash(tenant)
    for begin in range(len(chain) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        before = hash((before, tokens[begin : begin + BLOCK].tobytes()))
        chain.append(before)


def num_common(chain: Chain, held: Container[int]) -> int:
    """Blocks at the beginning of `chain` that are in `held`, which holds whole chains: by bisection, since a chain's
    block is only there with all those before it."""
    low, high = 0, len(chain)
    while low < high:
        middle = (low + high) // 2
        if chain[middle] in held:
            low = middle + 1
        else:
            high = middle
    return low


class PrefixIndex:
    """Follows a slot table: only slots that changed since the last `refresh` are read again."""

    def __init__(self, slots: SlotTable) -> None:
        self._slots = slots
        self._chains: list[Chain] = [[] for _ in range(slots.num_slots)]
        self._generation = slots.generation.copy()
        self._num_blocks = np.zeros_like(slots.length)
        self._held: Counter[int] = Counter()

    def refresh(self) -> None:
        generation, num_blocks = self._slots.generation, self._slots.length // BLOCK
        for slot in np.flatnonzero((generation != self._generation) | (num_blocks != self._num_blocks)).tolist():
            self._read(slot, int(num_blocks[slot]), is_same=bool(generation[slot] == self._generation[slot]))
        self._generation, self._num_blocks = generation.copy(), num_blocks

    def num_held(self, chain: Chain) -> int:
        """Blocks at the beginning of `chain` whose keys and values are in a slot."""
        return num_common(chain, self._held)

    def _read(self, slot: int, num_blocks: int, *, is_same: bool) -> None:
        chain = self._chains[slot]
        num_kept = min(num_blocks, len(chain)) if is_same else 0
        for block in chain[num_kept:]:
            self._held[block] -= 1
            if not self._held[block]:
                del self._held[block]
        del chain[num_kept:]
        extend(chain, self._slots.tokens[slot, : num_blocks * BLOCK], self._slots.tenant[slot])
        self._held.update(chain[num_kept:])
