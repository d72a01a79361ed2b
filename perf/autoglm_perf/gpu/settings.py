"""What `make bench-gpu` is asked to measure, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autoglm_export.model.spec import ModelSpec

from .device import Gpu
from .shapes import WEIGHT_BYTES, Shape, cache_bytes_per_token, weight_bytes_read

MAX_BATCH = 1024
MAX_CANDIDATES = 3840  # of TensorRT's top-k


class InvalidSetting(Exception):
    """One sentence with the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class GpuBenchSettings:
    """`past`: tokens in every slot before the first decode step. `rounds`: how often all batch sizes are gone through,
    so that a card that warms up or throttles does so under all of them. `samples`: steps a round."""

    runtime: str
    precision: str
    shape: Shape = field(default_factory=Shape)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    max_length: int = 2048
    past: int = 512
    prefill_tokens: int = 1024
    prefill_chunk: int = 512
    num_candidates: int = 64
    rounds: int = 3
    warm_up: int = 10
    samples: int = 50
    baseline: bool = True
    results: Path = Path("perf/results/gpu.jsonl")

    def __post_init__(self) -> None:
        _check("batch size", self.batches, 1, MAX_BATCH)
        _check("past", (self.past,), 1, self.max_length)
        _check("prefill tokens", (self.prefill_tokens,), 1, self.max_length)
        _check("prefill chunk", (self.prefill_chunk,), 1, self.max_length)
        _check("number of candidates", (self.num_candidates,), 1, MAX_CANDIDATES)
        for name in ("rounds", "samples"):
            _check(name, (getattr(self, name),), 1, 10_000)
        if (needed := self.past + self.warm_up + self.samples) > self.max_length:
            raise InvalidSetting(
                f"past {self.past}, warm-up {self.warm_up} and samples {self.samples} need {needed} positions; "
                f"the slots have {self.max_length}"
            )

    @property
    def num_slots(self) -> int:
        return max(self.batches)

    @property
    def mean_length(self) -> int:
        """Tokens in a slot at the middle one of the timed steps."""
        return self.past + self.warm_up + self.samples // 2

    def spec(self) -> ModelSpec:
        return self.shape.spec(self.max_length)

    def refuse_what_does_not_fit(self, gpu: Gpu) -> None:
        """Raises InvalidSetting where weights and slots alone are more than the card has."""
        needed = device_bytes(self.spec(), self.precision, self.num_slots, self.max_length)
        if needed > gpu.memory_bytes:
            raise InvalidSetting(
                f"weights and {self.num_slots} slots of {self.max_length} tokens need {needed / 1e9:.1f} GB; "
                f"{gpu.name} has {gpu.memory_bytes / 1e9:.1f} GB: try --precision int4, fewer --batch, a "
                "shorter --max-length or fewer --layers"
            )


def device_bytes(spec: ModelSpec, precision: str, num_slots: int, max_length: int) -> int:
    """Weights, embedding included, and the slots' keys and values; the runtime's own buffers come on top."""
    small = WEIGHT_BYTES["fp32" if precision == "fp32" else "fp16"]
    embedding = 0 if spec.tied_embeddings else round(spec.vocab_size * spec.hidden_size * small)
    cache = num_slots * max_length * cache_bytes_per_token(spec, precision)
    return weight_bytes_read(spec, precision) + embedding + cache


def _check(name: str, values: tuple[int, ...], low: int, high: int) -> None:
    if not values:
        raise InvalidSetting(f"no {name} is given; allowed are {low} ... {high}")
    for value in values:
        if not low <= value <= high:
            raise InvalidSetting(f"the {name} is {value}; allowed is {low} ... {high}")


def parse_batches(text: str) -> tuple[int, ...]:
    """ "1,2,4" -> (1, 2, 4), in rising order, each once."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InvalidSetting(f"the batch sizes are {text!r}; they must be whole numbers with commas between") from None
