"""`make test-cpus`: the tests whose result could depend on the CPU, as other CPUs would run them.

Each round runs the same tests in a process of its own, with the libraries told to take the kernels of another CPU. A
round whose instructions this CPU lacks is left out, and said so. ONNX Runtime has no such switch: its kernels are the
CPU's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoglm_engine.runners.cpu import cpu_features
from autoglm_engine.runners.native.library import TARGET_VARIABLE
from autoglm_export.compiler import TARGETS

TESTS = (
    *(
        "test_native.py",
        "test_native_alone.py",
        "test_reproducible.py",
        "test_rounding.py",
        "test_int4.py",
        "test_calibration.py",
    ),
    *("test_decoder.py", "test_checkpoint.py", "test_families.py", "test_embedder.py", "test_onnx_runner.py"),
    *("test_parity.py", "test_batching.py", "test_speculation_model.py", "test_tensorrt_parity.py"),
    *("test_trt_interpreter_math.py", "test_trt_interpreter_attention.py", "test_trt_interpreter_quantization.py"),
)
_FOLDER = Path(__file__).parent.parent
_AVX2, _AVX512 = ("avx2", "fma"), ("avx512f", "avx512bw", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Round:
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: Collection[str] = ()  # flags of /proc/cpuinfo
    one_core: bool = False

    def missing(self, present: Collection[str]) -> list[str]:
        return sorted(set(self.needs) - set(present))


ROUNDS = (
    Round("as it is"),
    Round("Haswell's BLAS", {"OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2"}, _AVX2),
    Round("Zen's BLAS", {"OPENBLAS_CORETYPE": "Zen", "ATEN_CPU_CAPABILITY": "default"}, _AVX2),
    Round("SkylakeX's BLAS", {"OPENBLAS_CORETYPE": "SkylakeX", "ATEN_CPU_CAPABILITY": "avx512"}, _AVX512),
    *(Round(f"native target {target.name}", {TARGET_VARIABLE: target.name}, target.cpu_features) for target in TARGETS),
    Round("one core", {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, one_core=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="What else is given goes to pytest.")
    parser.add_argument("--round", action="append", choices=[each.name for each in ROUNDS], help="only this one")
    given, arguments = parser.parse_known_args()
    chosen = [each for each in ROUNDS if not given.round or each.name in given.round]
    present = cpu_features()
    results = [(each, *run(each, present, arguments)) for each in chosen]
    print(f"\n{'round':<28} {'seconds':>8}  result")
    for each, result, seconds in results:
        print(f"{each.name:<28} {seconds:>8.0f}  {result}")
    return any(result == "failed" for _, result, _ in results)


def run(each: Round, present: Collection[str], arguments: list[str]) -> tuple[str, float]:
    if missing := each.missing(present):
        return f"left out: this CPU lacks {', '.join(missing)}", 0.0
    print(f"\n== {each.name}: {dict(each.environment)}", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *(str(next(_FOLDER.rglob(name))) for name in TESTS), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, **each.environment},
        check=False,
        cwd=_FOLDER.parent,
        preexec_fn=_take_one_core if each.one_core else None,
    )
    return "passed" if done.returncode == 0 else "failed", time.monotonic() - started


def _take_one_core() -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


if __name__ == "__main__":
    sys.exit(main())
