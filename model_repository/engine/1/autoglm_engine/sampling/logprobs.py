"""Log-probabilities: always of the unmodified logits at temperature 1, whatever a token was drawn from."""

from __future__ import annotations

import numpy as np

from autoglm_engine.core import TokenLogprobs

from .candidates import Shortlist
from .row_ops import Row, most_likely, total_weight


def logprobs_of(logits: Row, token_id: int, num_top: int) -> TokenLogprobs | None:
    """Of the chosen token and of the `num_top` most likely ones; None unless `num_top` asks for some."""
    if not num_top:
        return None
    best = logits.max()
    log_total = float(best) + float(np.log(total_weight(logits, best, 1.0)))
    top = most_likely(logits, num_top)[:num_top].tolist()
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits[token_id]) - log_total,
        top=tuple((i, float(logits[i]) - log_total) for i in top),
    )


def listed_logprobs(listed: Shortlist, token_id: int, num_top: int) -> TokenLogprobs | None:
    """The same from a shortlist of unmodified logits that has the token and `num_top` others, but for the rounding of
    the device's sum (some 1e-5)."""
    if not num_top:
        return None
    ids, values = listed.ids.tolist(), (listed.values.astype(np.float64) - listed.log_sum_exp).tolist()
    return TokenLogprobs(
        token_id, values[ids.index(token_id)], tuple(zip(ids[:num_top], values[:num_top], strict=True))
    )
