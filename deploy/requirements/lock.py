"""Writes requirements.lock, requirements-cpu.lock and requirements-gateway.lock: what the .txt of the same name needs,
with the hashes of the wheels that may be installed for it.

    python deploy/requirements/lock.py

pip resolves within constraints.txt, once for each Python and processor that the image may have, and installs nothing.
It asks the package index that pip is set up for. Run it whenever one of those files or constraints.txt change.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAMES = ("requirements", "requirements-cpu", "requirements-gateway")
PYTHONS = ("3.11", "3.12")  # those that numpy below 2 has wheels for
PROCESSORS = ("x86_64", "aarch64")
_GLIBC = (17, 24, 27, 28, 31, 34, 35, 39)  # 2.x; Ubuntu 24.04 has 2.39
_HEAD = """\
# Made by `python deploy/requirements/lock.py` from {name}.txt and constraints.txt, for --require-hashes.
# For Python {pythons} on {processors}.
"""


def main() -> None:
    for name in NAMES:
        pins = defaultdict[str, set[str]](set)
        for python in PYTHONS:
            for processor in PROCESSORS:
                print(f"resolving {name} for Python {python} on {processor} ...", file=sys.stderr)
                for pin, digest in resolved(name, python, processor):
                    pins[pin].add(digest)
        (FOLDER / f"{name}.lock").write_text(lock_of(name, pins), encoding="utf-8")


def lock_of(name: str, pins: dict[str, set[str]]) -> str:
    head = _HEAD.format(name=name, pythons=" and ".join(PYTHONS), processors=" and ".join(PROCESSORS))
    lines = [
        " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(digests))])
        for pin, digests in sorted(pins.items())
    ]
    return head + "\n".join(lines) + "\n"


def resolved(name: str, python: str, processor: str) -> list[tuple[str, str]]:
    """(name==version, SHA-256 of its wheel) of each package."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(_command(name, python, processor, report, Path(folder) / "nothing"), check=True)
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [(_pin(one["metadata"]), one["download_info"]["archive_info"]["hashes"]["sha256"]) for one in found]


def _pin(metadata: dict[str, str]) -> str:
    return f"{metadata['name'].lower().replace('_', '-')}=={metadata['version']}"


def _command(name: str, python: str, processor: str, report: Path, target: Path) -> list[str]:
    platforms = [f"manylinux_2_{minor}_{processor}" for minor in _GLIBC] + [f"manylinux2014_{processor}"]
    abis = [f"cp{python.replace('.', '')}", "abi3", "none"]
    files = ["--requirement", str(FOLDER / f"{name}.txt"), "--constraint", str(FOLDER.parents[1] / "constraints.txt")]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
        *(f"--report={report}", f"--target={target}", f"--python-version={python}", "--implementation=cp"),
        *(f"--platform={platform}" for platform in platforms),
        *(f"--abi={abi}" for abi in abis),
        *files,
    ]


if __name__ == "__main__":
    main()
