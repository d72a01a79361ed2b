"""`make drop-in`: other people's programs ask this server as their own: tritonclient's clients from an environment that
has nothing else, perf_analyzer, and genai-perf as for vLLM and for TensorRT-LLM. Prints what they say; ends with 1
where one fails.

Each environment is made once, in build/drop-in. genai-perf drives the perf_analyzer of tritonclient 2.51's wheel:
PyPI's own needs a newer glibc than Debian 12 has, and genai-perf 0.0.8 is the version of that release.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from autoglm_cli.server.local_server import LocalServer
from autoglm_perf.baselines.analyzer import Sweep, analyzer_environment, find_binary, run_sweep
from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import Workload, exact_prompts, load_tokenizer

from tests.support.export.artifacts import ROOT, kept_export

PLACE = ROOT / "build" / "drop-in"
CLIENTS = ("tritonclient[all]",)
GENAI_PERF = ("genai-perf==0.0.8", "numpy<2")
# (model, as which backend)
GENAI_RUNS = (("vllm_model", "vllm"), ("ensemble", "tensorrtllm"), ("autoglm", "vllm"), ("autoglm", "tensorrtllm"))
OUTPUT_TOKENS = 16
_TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast"}
_SECONDS = 900


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="[default: SmolLM2, exported for the native runtime]")
    parser.add_argument("--only", choices=("clients", "perf_analyzer", "genai-perf"), help="one of the three")
    chosen = parser.parse_args()
    programs: dict[str, Callable[[LocalServer, Path], None]] = {
        "clients": clients,
        "perf_analyzer": perf_analyzer,
        "genai-perf": genai_perf,
    }
    artifact = chosen.artifact or kept_export("native", runtime="native")
    failed = []
    with _server(artifact) as server:
        for name, program in programs.items():
            if chosen.only in (None, name) and not _tried(name, program, server, artifact):
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all of them got their answers")
    return 1 if failed else 0


def _tried(name: str, program: Callable[[LocalServer, Path], None], server: LocalServer, artifact: Path) -> bool:
    print(f"== {name}", flush=True)
    try:
        program(server, artifact)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"{name} failed: {error}", flush=True)
        return False
    return True


@contextmanager
def _server(artifact: Path) -> Iterator[LocalServer]:
    """Without the cache, since prompts come again."""
    with LocalServer(ROOT / "model_repository", artifact=artifact, env={"AUTOGLM_CACHE_MODE": "off"}) as server:
        yield server


def clients(server: LocalServer, artifact: Path) -> None:
    """With nothing of this project to be imported."""
    python = _environment("clients", *CLIENTS)
    script = Path(__file__).with_name("drop_in_clients.py")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    _run([str(python), "-P", str(script), server.grpc_url, server.http_url], alone)


def perf_analyzer(server: LocalServer, artifact: Path) -> None:
    workload = Workload("short", exact_prompts(load_tokenizer(artifact), 16, 32, seed=0), 32, OUTPUT_TOKENS)
    for number, timings in run_sweep(server.grpc_url, workload, Sweep((1, 4), num_requests=16)).items():
        first, whole = (median(times) * 1000 for times in zip(*map(_times, timings), strict=True))
        print(
            f"{number} in flight, {len(timings)} requests: first token after {first:.0f} ms, the last after {whole:.0f}"
        )


def _times(timing: RequestTiming) -> tuple[float, float]:
    return timing.time_to_first_token, timing.finished - timing.started


def genai_perf(server: LocalServer, artifact: Path) -> None:
    python = _environment("genai-perf", *GENAI_PERF)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = Path(scratch) / "tokenizer"
        tokenizer.mkdir()
        (tokenizer / "tokenizer.json").symlink_to(artifact.resolve() / "tokenizer.json")
        (tokenizer / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER))
        with analyzer_environment() as environment:
            for model, backend in GENAI_RUNS:
                print(f"-- {model} as {backend}", flush=True)
                _genai_run(python, environment, server.grpc_url, (model, backend), tokenizer)


def _genai_run(python: Path, environment: dict[str, str], url: str, run: tuple[str, str], tokenizer: Path) -> None:
    model, backend = run
    output = tokenizer.parent / f"{model}-{backend}"
    command = [
        str(python.with_name("genai-perf")),
        "profile",
        "-m",
        model,
        "--service-kind",
        "triton",
        "--backend",
        backend,
    ]
    command += [
        "-u",
        url,
        "--streaming",
        "--concurrency",
        "2",
        "--num-prompts",
        "8",
        "--synthetic-input-tokens-mean",
        "32",
    ]
    command += ["--output-tokens-mean", str(OUTPUT_TOKENS), "--output-tokens-mean-deterministic"]
    command += ["--measurement-interval", "4000", "--stability-percentage", "999"]
    command += ["--extra-inputs", "heartbeat_ms:3600000"]  # a heartbeat counts as a token there
    command += ["--tokenizer", str(tokenizer), "--artifact-dir", str(output)]
    path = os.pathsep.join([str(find_binary().parent), str(python.parent), environment["PATH"]])
    _run(command, {**environment, "PATH": path, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"})
    lengths = json.loads((output / "profile_export_genai_perf.json").read_text())["output_sequence_length"]
    if not OUTPUT_TOKENS - 1 <= lengths["avg"] <= OUTPUT_TOKENS + 1:  # a text may be encoded otherwise than it was said
        raise RuntimeError(f"answers have {lengths['avg']:.1f} tokens on average; {OUTPUT_TOKENS} were asked for")


def _run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, timeout=_SECONDS)


def _environment(name: str, *packages: str) -> Path:
    """Its Python. Made whole or not at all: a stamp says so."""
    folder = PLACE / name
    python, stamp = folder / "bin" / "python", folder / "stamp"
    if not stamp.exists() or stamp.read_text() != "\n".join(packages):
        print(f"installing {', '.join(packages)} into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True)
        stamp.write_text("\n".join(packages))
    return python


if __name__ == "__main__":
    sys.exit(main())
