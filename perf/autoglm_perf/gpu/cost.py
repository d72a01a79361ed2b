"""What a step of GLM-4-9B must cost on a card, computed and not measured: bytes, arithmetic, launches and host time.

`python -m autoglm_perf.gpu.cost` writes the tables of docs/gpu.md. A decode step takes the longer of reading the
weights and multiplying by them, then reads keys and values, then goes through the logits, then the host samples and
plans while the GPU waits. Not in it: attention's own arithmetic, how well a kernel spreads one row over a GPU,
normalisation and the like. So the figures are floors to be compared with each other, not promises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from autoglm_engine.core import Span
from autoglm_engine.runners.tensorrt.prefill_batches import batches_of
from autoglm_engine.runners.tensorrt.shapes import TensorShapes
from autoglm_export.tensorrt import profiles
from autoglm_export.tensorrt.lowering import DEFAULT_CANDIDATES

from autoglm_perf.suite.markdown import write_summary

from .shapes import Shape, cache_bytes_per_token, num_parameters, weight_bytes_read

COMMAND = "python -m autoglm_perf.gpu.cost"
PRECISION = "bf16"
ROWS, LENGTHS, PROMPTS = (1, 16, 64, 256), (1_000, 8_000, 25_000), (16, 100, 400)
LONGEST = 25_600  # tokens that a slot is built for, where the card has room
CHUNK = 512

# Measured on one core of a CPU server, see docs/performance.md and docs/decisions/engine.md.
PLAN_SECONDS = 8.3e-6  # a row: scheduling, sampling and events of a greedy request
DRAW_SECONDS = 0.7e-6  # a row drawn from the candidates, all rows at once
ROW_SECONDS = 155e-6  # a whole row of 151,552 logits: copied, drawn from
MISSED = 0.15  # of the draws at temperature 1 end outside of 64 candidates: of SmolLM2, a small and so a flat model
# Not measured.
WAIT_SECONDS = 50e-6  # a copy that the host waits for, beside its bytes
LAUNCHES, LAUNCH_SECONDS = (
    900,
    2.5e-6,
)  # kernels of a call that is no CUDA graph, which the host launches while the GPU computes
ATTAINED_READ, ATTAINED_MATH = 0.9, 0.7  # of what the data sheet says
LOGIT_PASSES = (
    8  # logits written; these, factors and offsets read, the sum written; read by top-k, maximum and exponentials
)
RESERVE = 2e9  # bytes: TensorRT's own buffers and CUDA


@dataclass(frozen=True, slots=True)
class Card:
    """As NVIDIA's data sheets have it: bytes/s of memory, dense bf16 operations/s, bytes, bytes/s to the host."""

    name: str
    bandwidth: float
    operations: float
    memory: float
    to_host: float

    def read_s(self, num_bytes: float) -> float:
        return num_bytes / (self.bandwidth * ATTAINED_READ)

    def matmul_s(self, rows: int) -> float:
        """All layers and the head for so many tokens."""
        weights = weight_bytes_read(SPEC, PRECISION)
        return max(
            self.read_s(weights), weights * rows / (self.operations * ATTAINED_MATH)
        )  # two bytes, two operations


CARDS = (
    Card("L40S", 864e9, 362e12, 48e9, 25e9),
    Card("H100 SXM", 3.35e12, 989e12, 80e9, 50e9),
    Card("H200", 4.8e12, 989e12, 141e9, 50e9),
)
SPEC = Shape().spec(LONGEST)


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds. `host`: while the GPU waits."""

    weights: float
    cache: float
    logits: float
    host: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.logits + self.host


def capacity(card: Card, rows: int) -> int:
    """Tokens that a slot can hold where there are `rows` of them, `LONGEST` at most."""
    room = card.memory - num_parameters(SPEC) * 2 - RESERVE
    return max(0, min(LONGEST, int(room / rows / cache_bytes_per_token(SPEC, PRECISION))))


def step_before(card: Card, rows: int) -> Step:
    """Attention reads what a slot can hold, and each row that is drawn from is copied to the host."""
    whole_row = SPEC.vocab_size * 4 / card.to_host + WAIT_SECONDS + ROW_SECONDS
    return _step(card, rows, capacity(card, rows), rows * (PLAN_SECONDS + whole_row))


def step_now(card: Card, rows: int, tokens: int) -> Step:
    """Attention reads up to the next of its lengths; of the draws, those that miss the candidates need their row."""
    cache_length = profiles.cache_length_of(capacity(card, rows), CHUNK)
    keys = next(length for length in profiles.attention_lengths_of(cache_length) if length > tokens)
    whole_row = SPEC.vocab_size * 4 / card.to_host + WAIT_SECONDS + ROW_SECONDS
    return _step(card, rows, keys, rows * (PLAN_SECONDS + DRAW_SECONDS + MISSED * whole_row))


def _step(card: Card, rows: int, positions: int, host: float) -> Step:
    cache = rows * positions * cache_bytes_per_token(SPEC, PRECISION)
    logits = rows * SPEC.vocab_size * 4 * LOGIT_PASSES
    return Step(card.matmul_s(rows), card.read_s(cache), card.read_s(logits), host)


def prefill_s(card: Card, calls: Iterable[int]) -> float:
    """`calls`: tokens of each, padding included."""
    return sum(max(card.matmul_s(tokens), LAUNCHES * LAUNCH_SECONDS) for tokens in calls)


def prompts_before(num_prompts: int, tokens: int) -> list[int]:
    """A call for each."""
    return [tokens] * num_prompts


def prompts_now(num_prompts: int, tokens: int) -> list[int]:
    """As the engine batches prompts in neighbouring slots."""
    spans = [Span(slot, 0, np.zeros(tokens, np.int32), wants_logits=True) for slot in range(num_prompts)]
    return [batch.num_rows * batch.num_tokens for batch in batches_of(spans, _shapes(num_prompts))]


def _shapes(num_slots: int) -> TensorShapes:
    length = profiles.cache_length_of(LONGEST, CHUNK)
    return TensorShapes(
        num_slots=num_slots,
        num_layers=SPEC.num_layers,
        num_kv_heads=SPEC.num_kv_heads,
        cache_length=length,
        attention_lengths=tuple(profiles.attention_lengths_of(length)),
        prefill_lengths=tuple(profiles.prefill_lengths_of(CHUNK)),
        batched_rows=min(profiles.BATCHED_ROWS, num_slots),
        batched_length=profiles.BATCHED_LENGTH,
        head_size=SPEC.head_size,
        cache_dtype="bfloat16",
        prefill_chunk=CHUNK,
        vocab_size=SPEC.vocab_size,
        num_candidates=DEFAULT_CANDIDATES,
    )


def render() -> str:
    """Two tables, with a sentence before each."""
    return "\n".join(
        [
            (
                "A decode step in milliseconds, **computed**, simple design → this one. All rows sample at temperature "
                f"1 and are so many tokens long; slots hold up to {LONGEST:,}."
            ),
            "",
            *_decode_table(),
            "",
            "32 new prompts at once: milliseconds of prefill, **computed**, one by one → in calls of several, padded.",
            "",
            *_prefill_table(),
        ]
    )


def _decode_table() -> list[str]:
    lines = [
        _line("card", "rows", "slots hold", *(f"{tokens:,} tokens" for tokens in LENGTHS)),
        "|---|---:|---:|" + "---:|" * 3,
    ]
    for card in CARDS:
        for rows in ROWS:
            cells = (_cell(card, rows, tokens) for tokens in LENGTHS)
            lines.append(_line(card.name, str(rows), f"{capacity(card, rows):,}", *cells))
    return lines


def _cell(card: Card, rows: int, tokens: int) -> str:
    if tokens >= capacity(card, rows):
        return "no room"
    before, now = step_before(card, rows), step_now(card, rows, tokens)
    return f"{1e3 * before.total:.1f} → {1e3 * now.total:.1f}"


def _prefill_table() -> list[str]:
    lines = [_line("card", *(f"32 prompts of {tokens}" for tokens in PROMPTS)), "|---|" + "---:|" * len(PROMPTS)]
    for card in CARDS:
        pairs = ((prompts_before(32, tokens), prompts_now(32, tokens)) for tokens in PROMPTS)
        cells = (f"{1e3 * prefill_s(card, one):.0f} → {1e3 * prefill_s(card, other):.0f}" for one, other in pairs)
        lines.append(_line(card.name, *cells))
    return lines


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    write_summary(Path("docs/gpu.md"), render(), COMMAND)
