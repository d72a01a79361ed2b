"""NVIDIA's perf_analyzer against the ensemble: a concurrency sweep over gRPC streaming, with time stamps a response.

The binary comes with the `tritonclient` 2.51 wheel; the two libraries that it needs lie, under hashed names, in the
`nvidia-pytriton` wheel.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import Workload

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


class AnalyzerUnavailable(RuntimeError):
    """perf_analyzer cannot run here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Sweep:
    concurrencies: tuple[int, ...] = (1, 4, 16)
    num_requests: int = 32
    cache: str = "bypass"


def find_binary() -> Path:
    found = shutil.which("perf_analyzer")
    if found is None:
        raise AnalyzerUnavailable("perf_analyzer is not on PATH; it comes with `pip install tritonclient==2.51.0`")
    return Path(found)


def run_sweep(url: str, workload: Workload, sweep: Sweep) -> dict[int, list[RequestTiming]]:
    """Timings by concurrency, one run of perf_analyzer each."""
    with _workplace(workload, sweep.cache) as place:
        return {number: _at_concurrency(place, url, number, sweep.num_requests) for number in sweep.concurrencies}


def run_rate(url: str, workload: Workload, rate: float, num_requests: int, cache: str) -> list[RequestTiming]:
    """Open loop: `rate` requests a second at moments of a Poisson process, whether or not earlier ones were
    answered."""
    load = ["--request-rate-range", f"{rate:g}", "--request-distribution", "poisson"]
    with _workplace(workload, cache) as place:
        return _run(place, url, [*load, "--request-count", str(num_requests)])


@dataclass(frozen=True, slots=True)
class _Workplace:
    binary: Path
    environment: dict[str, str]
    input_file: Path
    max_tokens: int


@contextmanager
def _workplace(workload: Workload, cache: str) -> Iterator[_Workplace]:
    binary = find_binary()
    with analyzer_environment() as environment, tempfile.TemporaryDirectory(prefix="autoglm-perf-") as scratch:
        input_file = Path(scratch) / "input.json"
        input_file.write_text(json.dumps(input_data(workload, cache)))
        yield _Workplace(binary, environment, input_file, workload.max_tokens)


@contextmanager
def analyzer_environment() -> Iterator[dict[str, str]]:
    """This process', with the libraries that the binary needs. Raises AnalyzerUnavailable."""
    with tempfile.TemporaryDirectory(prefix="autoglm-perf-") as scratch:
        yield {**os.environ, "LD_LIBRARY_PATH": str(_library_folder(Path(scratch)))}


def input_data(workload: Workload, cache: str) -> dict[str, Any]:
    """perf_analyzer's input file: one step a prompt; sampling options are tensors."""
    options = {
        "max_tokens": [workload.max_tokens],
        "temperature": [0.0],
        "ignore_eos": [True],
        "stream": [True],
        "cache": [cache],
    }
    return {"data": [{"text_input": [prompt], **options} for prompt in workload.prompts]}


def _at_concurrency(place: _Workplace, url: str, concurrency: int, num_requests: int) -> list[RequestTiming]:
    count = max(num_requests, 2 * concurrency)
    return _run(place, url, ["--concurrency-range", str(concurrency), "--request-count", str(count)])


def _run(place: _Workplace, url: str, load: list[str]) -> list[RequestTiming]:
    export_file = place.input_file.with_name("profile.json")
    export_file.unlink(missing_ok=True)  # perf_analyzer overwrites nothing
    command = [str(place.binary), "-m", "autoglm", "-u", url, "-i", "grpc", "--streaming", "--async"]
    command += ["--input-data", str(place.input_file), "--profile-export-file", str(export_file), *load]
    done = subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"perf_analyzer failed ({done.returncode}): {(done.stdout + done.stderr).strip()[:500]}")
    return parse_profile(json.loads(export_file.read_text()), max_tokens=place.max_tokens)


def parse_profile(profile: dict[str, Any], *, max_tokens: int) -> list[RequestTiming]:
    """The profile export gives nanoseconds: `timestamp` of the request, `response_timestamps` of each response."""
    requests = [request for experiment in profile["experiments"] for request in experiment["requests"]]
    return [_timing(request, max_tokens) for request in requests]


def _timing(request: dict[str, Any], max_tokens: int) -> RequestTiming:
    arrivals = [stamp / 1e9 for stamp in request["response_timestamps"]]
    # Several tokens may share a response: the time after the first is spread evenly over the remaining tokens.
    mean_gap = (arrivals[-1] - arrivals[0]) / max(1, max_tokens - 1)
    gaps = (mean_gap,) * (max_tokens - 1)
    return RequestTiming(request["timestamp"] / 1e9, arrivals[0], arrivals[-1], max_tokens, gaps)


def _packages_of(package: str) -> Path:
    """The folder that a package is installed in: an environment may take it from another one."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise AnalyzerUnavailable(
            f"perf_analyzer needs libraries that nvidia-pytriton 0.7.0 carries; there is no {package}"
        )
    return Path(found.origin).parent.parent


def _library_folder(scratch: Path) -> Path:
    bundled = _packages_of("pytriton") / "nvidia_pytriton.libs"
    folder = scratch / "lib"
    folder.mkdir()
    for name, pattern in LIBRARIES.items():
        match = next(bundled.glob(pattern), None)
        if match is None:
            raise AnalyzerUnavailable(f"perf_analyzer needs {name}, which nvidia-pytriton 0.7.0 carries as {pattern}")
        (folder / name).symlink_to(match)
    return folder
