"""What the first hour on a card asks, in the order in which an answer decides what is worth asking next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECORD, FIGURES = "found.jsonl", "gpu.jsonl"  # in the folder of the run: of the tests, and of the benchmark
_TESTS = (
    "-m",
    "gpu",
    "-q",
    "-W",
    "default",
    "-o",
    "log_cli=true",
    "-o",
    "log_cli_level=WARNING",
    "-p",
    "no:cacheprovider",
)
_LAYERS = 8  # for what is compared with itself: a fifth of the model shows the same, and builds in a fifth of the time


@dataclass(frozen=True, slots=True)
class Step:
    """`minutes`: about what it takes on an H200. `ends`: why nothing after it is worth running where it fails; empty
    where the rest is."""

    name: str
    what: str
    minutes: int
    command: tuple[str, ...]
    ends: str = ""


def steps(runtime: str, folder: Path) -> tuple[Step, ...]:
    """`runtime`: tensorrt or tensorrt-rtx. `folder`: for artifacts and what is found."""
    return (
        Step(
            "driver",
            "memory, copies, events and graphs by the real driver, and what a call costs the host",
            1,
            (sys.executable, "tests/gpu/real_cuda.py"),
            "nothing that follows can be right where the driver does something else than the runner expects",
        ),
        Step(
            "parity",
            "tiny GLM-4 in bf16 against transformers on the card: a fused kernel exists, rope, masks on a short cache",
            2,
            _pytest("test_gpu_parity.py", "glm4 and bf16 and not glm4v"),
            "the default precision computes something else, so no time of it means anything",
        ),
        Step(
            "precisions",
            "the same in fp16, fp8 and int4: which of them build here, and are right",
            4,
            _pytest("test_gpu_parity.py", "glm4 and (fp16 or fp8 or int4)"),
        ),
        Step(
            "capacity",
            "two layers of GLM-4's width at 8,192 and 25,600 positions beside poison, in each form of attention",
            12,
            _pytest("test_gpu_capacity.py"),
            "no form of attention is right at the capacities that are served",
        ),
        Step(
            "batching",
            "answers do not depend on company, idle rows and copied prefixes; penalties, seeds and cancels",
            4,
            _pytest("test_gpu_batching.py", files=["test_gpu_engine.py"]),
        ),
        _vision(),
        *_costs(runtime, folder),
        Step(
            "server",
            "a real tritonserver: an answer, sixteen at once, a stream that is left",
            3,
            _pytest("test_gpu_server.py"),
        ),
        _whole(runtime, folder),
    )


def _vision() -> Step:
    return Step(
        "vision",
        "the vision tower at its published widths: a screen of 13,416 patches against transformers, and its time",
        10,
        _pytest("test_gpu_vision.py"),
    )


def _whole(runtime: str, folder: Path) -> Step:
    return Step(
        "whole",
        "GLM-4-9B's shape in bf16: memory bandwidth, decode by batch size against the floor, prefill, transformers",
        25,
        _bench(runtime, folder, "glm-bf16", "1,2,4,8,16,32,64", 2048, 512),
    )


def _costs(runtime: str, folder: Path) -> tuple[Step, ...]:
    """The first against the second is what a capacity costs, the second against the third what a length does."""
    small = ("--layers", str(_LAYERS), "--no-baseline")
    return (
        Step(
            "cost-short",
            f"{_LAYERS} layers, slots of 2,048 with 512 tokens",
            3,
            _bench(runtime, folder, "layers-2k", "1,4,16,64", 2048, 512, *small),
        ),
        Step(
            "cost-capacity",
            f"{_LAYERS} layers, slots of 25,600 with 512 tokens: against the step before, what the capacity costs",
            4,
            _bench(runtime, folder, "layers-25k", "1,4,16,64", 25_600, 512, *small),
        ),
        Step(
            "cost-length",
            f"{_LAYERS} layers, slots of 25,600 with 24,000 tokens: against the step before, what the length costs",
            4,
            _bench(runtime, folder, "layers-25k", "1,4,16,64", 25_600, 24_000, *small),
        ),
    )


def _pytest(file: str, chosen: str = "", files: Sequence[str] = ()) -> tuple[str, ...]:
    paths = [f"tests/gpu/{name}" for name in (file, *files)]
    return (sys.executable, "-m", "pytest", *_TESTS, *paths, *(("-k", chosen) if chosen else ()))


def _bench(
    runtime: str, folder: Path, artifact: str, batches: str, max_length: int, past: int, *more: str
) -> tuple[str, ...]:
    return (
        sys.executable,
        "-m",
        "autoglm_perf.gpu.bench",
        "--runtime",
        runtime,
        "--precision",
        "bf16",
        "--batch",
        batches,
        "--max-length",
        str(max_length),
        "--past",
        str(past),
        "--artifact",
        str(folder / artifact),
        "--results",
        str(folder / FIGURES),
        *more,
    )
