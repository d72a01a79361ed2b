"""What the GPU tests can run on here: `python tests/gpu/available.py` prints it, and fails where that is nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from autoglm_perf.gpu.device import RUNTIMES, Gpu, NoGpu, best_runtime, find_gpu, why_not_precision, why_not_runtime


@dataclass(frozen=True)
class Available:
    """`gpu` and `runtime` are None where there is nothing to test on; `reason` then says why. `refused`: precision ->
    why the runtime cannot compute in it on this GPU."""

    gpu: Gpu | None = None
    runtime: str | None = None
    reason: str = ""
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """What tests of one precision run in: the default, bf16, wherever the runtime has it."""
        return "fp16" if "bf16" in self.refused else "bf16"

    def why_not(self, precision: str) -> str | None:
        return self.reason if self.runtime is None else self.refused.get(precision)


def available() -> Available:
    """The first of tensorrt, tensorrt-rtx and ONNX Runtime that can run on the first visible GPU."""
    try:
        gpu = find_gpu()
    except NoGpu as error:
        return Available(reason=str(error))
    try:
        runtime = best_runtime(gpu)
    except NoGpu as error:
        return Available(gpu, reason=str(error))
    reasons = {precision: why_not_precision(precision, runtime, gpu) for precision in ("fp16", "bf16", "fp8", "int4")}
    return Available(gpu, runtime, refused={name: reason for name, reason in reasons.items() if reason})


def report(found: Available) -> list[str]:
    """Lines for people."""
    if found.gpu is None:
        return [found.reason]
    lines = [f"{found.gpu.name}, compute capability {found.gpu.capability_text}, CUDA {found.gpu.driver} driver"]
    lines += [f"{runtime}: {why_not_runtime(runtime, found.gpu) or 'can run'}" for runtime in RUNTIMES]
    if found.runtime is not None:
        lines.append(f"tested: {found.runtime}")
        lines += [f"left out: {reason}" for reason in found.refused.values()]
    return lines


if __name__ == "__main__":
    here = available()
    print("\n".join(report(here)))
    sys.exit(0 if here.runtime else 1)
