"""Which form of attention TensorRT-RTX builds for each family, precision, GPU and capacity: a line each, no GPU needed.

`make build-matrix` runs it; it takes half an hour. The heads are GLM-4's (32 of 128, two of them with keys and
values), everything else is narrow, and there are two layers. It fails where one is not fused.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_export.errors import ExportError
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.lowering import write_tensorrt_rtx
from autoglm_export.tensorrt.options import DEFAULT_CAPABILITIES, OLDEST_CAPABILITY, PRECISIONS

from tests.support.export.tiny_decoders import SPECS, random_weights

FAMILIES = ("llama", "qwen2", "qwen3", "glm", "glm4")
CAPACITIES = (48, 8192, 25_600)  # positions of a slot
IDS = [np.arange(40, dtype=np.int32)]


def wide_heads(spec: ModelSpec) -> ModelSpec:
    rope = dataclasses.replace(spec.rope, dims=64 if spec.rope.interleaved else 128)
    return dataclasses.replace(spec, num_heads=32, num_kv_heads=2, head_size=128, rope=rope)


def cases() -> Iterator[tuple[str, str, str, int]]:
    """(family, precision, compute capability, capacity); only what has the precision's types."""
    specs = {**{name: name for name in FAMILIES}, "glm4v": "glm4"}
    for family, precision, capability, capacity in product(specs, PRECISIONS, DEFAULT_CAPABILITIES, CAPACITIES):
        if tuple(map(int, capability.split("."))) >= OLDEST_CAPABILITY[precision]:
            yield family, precision, capability, capacity


def built(family: str, precision: str, capability: str, capacity: int, folder: Path) -> dict[str, Any]:
    spec = wide_heads(dataclasses.replace(SPECS["glm4" if family == "glm4v" else family], family=family))
    chunk = 16 if capacity < 512 else 512
    return write_tensorrt_rtx(
        spec,
        random_weights(spec),
        folder,
        precision=precision,
        num_slots=16,
        max_length=capacity - min(chunk, 128),
        prefill_chunk=chunk,
        num_candidates=8,
        compute_capabilities=[capability],
        texts=IDS,
    )


def said(case: tuple[str, str, str, int]) -> tuple[bool, str]:
    """Whether it is fused, and a line for people."""
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            details = built(*case, Path(folder))
    except ExportError as error:
        return False, f"refused: {error}"
    tokens = details["profiles"]["decode"]["sequence"][1]
    line = f"{details['attention']}, decode of up to {tokens} token(s), {time.monotonic() - begin:.1f} s"
    return details["attention"] == "fused", line


def main() -> int:
    missing = 0
    for case in cases():
        is_fused, line = said(case)
        missing += not is_fused
        print(*case, line, sep="\t", flush=True)
    print(f"{missing} of {len(list(cases()))} are not fused")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
