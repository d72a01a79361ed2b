"""What other backends answer beside the text, for the ensembles that bear their models' names.

`autoglm` has none of these outputs, so they are made only where a response's ensemble maps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import Event

Outputs = dict[str, npt.NDArray[Any]]
DecodeToken = Callable[[int], str]

COUNTS = ("num_input_tokens", "num_output_tokens")
SUMS = "cumulative_logprob"
FOREIGN_OUTPUTS = frozenset({*COUNTS, SUMS, "output_log_probs", "token_logprobs", "end_reason"})


class ForeignOutputs:
    """Of log-probabilities the sum so far is kept, by acknowledgement cell, so there is a bound to it."""

    def __init__(self, decode: DecodeToken) -> None:
        self._decode = decode
        self._sums: dict[int, float] = {}

    def of(self, event: Event, cell: int | None, wanted: Collection[str]) -> Outputs:
        """Those that are `wanted`. `cell`: where the event is acknowledged; None: it is one without a stream."""
        return {name: value for name, value in self._all(event, cell).items() if name in wanted}

    def _all(self, event: Event, cell: int | None) -> Outputs:
        logprobs = np.array([entry.logprob for entry in event.logprobs], np.float32)
        return {
            "num_input_tokens": np.array([[event.usage.prompt_tokens]], np.int32),
            "num_output_tokens": np.array([[len(event.token_ids)]], np.int32),  # of this response
            SUMS: np.array([[self._sum(event, cell, float(logprobs.sum()))]], np.float32),
            "output_log_probs": logprobs.reshape(1, 1, -1),
            "token_logprobs": _text(json.dumps(self._tokens(event), ensure_ascii=False)),
            "end_reason": _text(event.finish_reason.value if event.finish_reason else "None"),
        }

    def _sum(self, event: Event, cell: int | None, added: float) -> float:
        if cell is None:
            return added
        self._sums[cell] = added if event.is_first else self._sums.get(cell, 0.0) + added
        return self._sums[cell]

    def _tokens(self, event: Event) -> list[dict[str, Any]] | None:
        """As vLLM's backend: of each token the candidates by token id; null where nobody asked. The rank of a token that
        is not among the most likely ones is not known here."""
        if not event.logprobs:
            return None
        found = []
        for entry in event.logprobs:
            ranked = {token_id: self._candidate(token_id, value, rank) for rank, (token_id, value) in enumerate(entry.top, 1)}
            chosen = ranked.pop(entry.token_id, self._candidate(entry.token_id, entry.logprob, None))
            found.append({str(token_id): told for token_id, told in {entry.token_id: chosen, **ranked}.items()})
        return found

    def _candidate(self, token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        told = {"logprob": logprob, "decoded_token": self._decode(token_id)}
        return told if rank is None else {**told, "rank": rank}


def _text(value: str) -> npt.NDArray[Any]:
    return np.array([[value.encode()]], dtype=np.object_)
