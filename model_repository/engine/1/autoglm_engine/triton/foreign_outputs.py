"""What other backends answer beside the text, for the ensembles that bear their models' names.

`autoglm` has none of these outputs, so they are made only where a response's ensemble maps them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Event, TokenLogprobs
from autoglm_engine.tokenizer.incremental import TokenText

Outputs = dict[str, npt.NDArray[Any]]

COUNTS = ("num_input_tokens", "num_output_tokens")
SUMS = "cumulative_logprob"
FOREIGN_OUTPUTS = frozenset({*COUNTS, SUMS, "output_log_probs", "token_logprobs", "end_reason"})


class ForeignOutputs:
    """Of log-probabilities the sum so far is kept, by acknowledgement cell, so there is a bound to it."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}

    def of(self, event: Event, cell: int | None, wanted: Collection[str], text: TokenText) -> Outputs:
        """Those that are `wanted`. `cell`: where the event is acknowledged; None: it is one without a stream."""
        return {name: value for name, value in self._all(event, cell, text).items() if name in wanted}

    def _all(self, event: Event, cell: int | None, text: TokenText) -> Outputs:
        logprobs = np.array([entry.logprob for entry in event.logprobs], np.float32)
        return {
            "num_input_tokens": np.array([[event.usage.prompt_tokens]], np.int32),
            "num_output_tokens": np.array([[len(event.token_ids)]], np.int32),  # of this response
            SUMS: np.array([[self._sum(event, cell, float(logprobs.sum()))]], np.float32),
            "output_log_probs": logprobs.reshape(1, 1, -1),
            "token_logprobs": _string(json.dumps(_tokens(event, text), ensure_ascii=False)),
            "end_reason": _string(event.finish_reason.value if event.finish_reason else "None"),
        }

    def _sum(self, event: Event, cell: int | None, added: float) -> float:
        if cell is None:
            return added
        self._sums[cell] = added if event.is_first else self._sums.get(cell, 0.0) + added
        return self._sums[cell]


def _tokens(event: Event, text: TokenText) -> list[dict[str, Any]] | None:
    """As vLLM's backend: of each token the candidates by token id; null where nobody asked. The rank of a token that is
    not among the most likely ones is not known here."""
    return [_candidates(entry, text) for entry in event.logprobs] or None


def _candidates(entry: TokenLogprobs, text: TokenText) -> dict[str, Any]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, 1)}
    found = {}
    for token_id, logprob in ((entry.token_id, entry.logprob), *entry.top):
        told = {
            "logprob": logprob,
            "rank": ranks.get(token_id),
            "decoded_token": text.decode((token_id,), is_first=False),
        }
        found[str(token_id)] = {name: value for name, value in told.items() if value is not None}
    return found


def _string(value: str) -> npt.NDArray[Any]:
    return np.array([[value.encode()]], dtype=np.object_)
