"""Whether what was timed was right: an engine that computes something else may be as fast as it likes.

Every timed step ends in a state that another way reaches, too: after decode steps all slots hold the same tokens, which
one prefill in chunks gives the same logits of, through other kernels; and the last token of a timed prefill can be
decoded. That these ways are right and not only alike is checked when a TensorRT artifact is loaded: against numpy, at
its whole capacity, beside poison, and over all layers (`autoglm_engine.runners.device_check.check`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from autoglm_engine.core import Logits

from .steps import StepRunner, decode, fill

# Relative L2 distance of two ways through all layers that rounding explains; of random weights, whose logits are near
# nothing but each other. What is wrong is off by 1 and more.
BOUNDS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.2, "int4": 0.2, "fp8": 0.4}


class WrongAnswer(Exception):
    """One sentence: what was timed is not what the model computes."""


def check_decode(rows: Logits, runner: StepRunner, ids: Sequence[int], precision: str) -> float:
    """`rows` `[batch, vocab_size]`: of slots 0 ... batch - 1 after the tokens `ids`. The worst row's distance from what
    a prefill of `ids` gives. Overwrites slot 0 with the same tokens. Raises WrongAnswer."""
    expected = fill(runner, 0, ids)
    return _checked(f"decode of {len(rows)} rows at {len(ids)} tokens", "prefill", rows, expected, precision)


def check_prefill(row: Logits, runner: StepRunner, ids: Sequence[int], precision: str) -> float:
    """`row` `[vocab_size]`: of slot 0 after a prefill of `ids`. Its distance from what decoding the last one gives."""
    if len(ids) > 1:
        fill(runner, 0, ids[:-1])
    expected = decode(runner, 1, len(ids) - 1, ids[-1])[0]
    return _checked(f"prefill of {len(ids)} tokens", "decode", row[None], expected, precision)


def _checked(what: str, other: str, rows: Logits, expected: Logits, precision: str) -> float:
    with np.errstate(all="ignore"):
        errors = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected)
    row, bound = int(np.argmax(np.nan_to_num(errors, nan=np.inf))), BOUNDS[precision]
    if not errors[row] <= bound:  # also true of NaN
        raise WrongAnswer(
            f"{what} is {errors[row]:.2g} off in slot {row} from what {other} gives of the same tokens, where rounding "
            f"explains {bound:g}: the times of an engine that is wrong mean nothing"
        )
    return float(errors[row])
