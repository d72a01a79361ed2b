"""Runs the smoke set (deploy/smoke.sh --local) on every tritonserver that PyPI has, and prints a table for
docs/serving/versions.md.

    python -m tests.by_hand.triton_matrix [--artifact PATH] [--folder PATH] [VERSION ...]

Each server comes from a wheel of nvidia-pytriton, which is unpacked into a folder of its own and never installed: the
environment that runs this stays as it is. The models run in this environment's Python.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from autoglm_cli.server.triton_install import TritonInstall, find_python_library

from tests.support.export.artifacts import KEPT, ROOT, kept_export

# One wheel for each server; 0.5.2, 0.5.5, 0.5.6, 0.5.13, 0.5.14 and 0.6.0 carry one that another carries, and those
# before 0.3.0 have no stub for a Python of today.
WHEELS = (
    *("0.3.1", "0.4.2", "0.5.0", "0.5.1", "0.5.3", "0.5.4", "0.5.7", "0.5.8", "0.5.9", "0.5.10", "0.5.11", "0.5.12"),
    "0.7.0",
)
RELEASES = {36: "23.07", 39: "23.10"} | {41 + month: f"24.{month:02}" for month in range(1, 11)} | {41: "23.12"}
PATIENCE_SECONDS = 900


@dataclass(slots=True)
class Found:
    """What the smoke set said of one server."""

    wheel: str
    lines: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        match = re.search(r"triton (2\.\d+)", "\n".join(self.lines))
        return match[1] if match else "?"

    @property
    def failures(self) -> list[str]:
        return [line.removeprefix("FAIL  ") for line in self.lines if line.startswith("FAIL")]

    @property
    def row(self) -> str:
        minor = int(self.version.partition(".")[2] or 0)
        histograms = re.search(r"(\d+) of them histograms", "\n".join(self.lines))
        checked = sum(line.startswith("ok") for line in self.lines)
        failed = [line.partition(":")[0] for line in self.failures]
        said = f"{checked} hold; not: {', '.join(failed)}" if failed else f"all {checked} hold"
        return (
            f"| {self.version} ({RELEASES.get(minor, '?')}) | {self.wheel} | {said} "
            f"| {'yes' if histograms and int(histograms[1]) else 'no'} |"
        )


def wheel_of(version: str, folder: Path) -> Path:
    """Downloaded without what it depends on."""
    if not (found := list(folder.glob(f"nvidia_pytriton-{version}-*.whl"))):
        wanted = f"nvidia-pytriton=={version}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted], check=True
        )
        found = list(folder.glob(f"nvidia_pytriton-{version}-*.whl"))
    return found[0]


def unpacked(version: str, folder: Path) -> TritonInstall:
    target = folder / version
    if not target.exists():
        with (
            zipfile.ZipFile(wheel_of(version, folder)) as wheel,
            tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as partial,
        ):
            wheel.extractall(partial)
            for program in (*Path(partial).rglob("tritonserver"), *Path(partial).rglob("triton_python_backend_stub")):
                if program.is_file():
                    program.chmod(0o755)
            Path(partial).rename(target)
    return TritonInstall(target / "pytriton" / "tritonserver", target / "nvidia_pytriton.libs", find_python_library())


def launcher(install: TritonInstall, folder: Path) -> Path:
    """A program that is this tritonserver with what it needs, for smoke.sh."""
    environment = install.environment({"PATH": os.environ["PATH"]})
    path = folder / "tritonserver"
    backends = install.assemble_backends(folder)
    words = [str(install.binary), f"--backend-directory={backends}", f"--cache-directory={install.root / 'caches'}"]
    exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
    path.write_text(f'#!/bin/sh\n{exports}exec {" ".join(repr(word) for word in words)} "$@"\n')
    path.chmod(0o755)
    return path


def smoke(version: str, folder: Path, artifact: Path, repository: Path) -> Found:
    found = Found(version)
    with tempfile.TemporaryDirectory() as scratch:
        program = launcher(unpacked(version, folder), Path(scratch))
        command = [ROOT / "deploy" / "smoke.sh", "--local", "--artifact", artifact, "--repository", repository]
        done = subprocess.run(
            [*map(str, command), "--timeout", "300", "--log", str(folder / f"{version}.log")],
            env={**os.environ, "TRITONSERVER": str(program)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    found.lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return found


def table(results: Iterable[Found]) -> str:
    head = ["| tritonserver | nvidia-pytriton | checks | histograms |", "|---|---|---|---|"]
    return "\n".join([*head, *(one.row for one in results)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "versions", nargs="*", default=WHEELS, help="of nvidia-pytriton; one for each server by default"
    )
    parser.add_argument("--folder", type=Path, default=KEPT.parent / "triton", help="where wheels and servers are kept")
    parser.add_argument("--artifact", type=Path, help="[default: SmolLM2, exported for the native runtime]")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    artifact = given.artifact or kept_export("native", runtime="native")
    results = []
    for version in given.versions:
        results.append(smoke(version, given.folder, artifact, given.repository))
        print(f"--- nvidia-pytriton {version}", *results[-1].lines, sep="\n", flush=True)
    print("", table(results), sep="\n")
    return 1 if any(one.failures for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
