"""Exports that many tests share, kept in build/ for as long as the exporter is the same."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoglm_engine.manifest import MANIFEST_NAME, Manifest
from autoglm_export.export import export

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "build" / "test-artifacts"
# Whatever is read here decides what an artifact is, or how it is read. A name that is not there is a mistake.
EXPORTER = ROOT / "export" / "autoglm_export"
ENGINE_SOURCES = (
    *(
        "manifest.py",
        "manifest_checks.py",
        "runners/runtime_details.py",
        "runners/registry.py",
        "runners/native/library.py",
        "runners/native/program.py",
    ),
    *("runners/native/runner.py", "runners/onnx/interface.py", "runners/onnx/runner.py"),
)


def kept_export(name: str, checkpoint: str | Path = "smollm2", **options: Any) -> Path:
    """A checkpoint exported with `options`; one process makes it, and others wait for it. `name`: of both. SmolLM2's
    slots are alike on every machine, and short: tests fill them."""
    digest = _exporter_digest() + (_digest(checkpoint) if isinstance(checkpoint, Path) else "")
    chosen = {"max_length": 1024, **options} if checkpoint == "smollm2" else options
    return _kept(name, digest, lambda output: export(checkpoint, output, **chosen))


def kept_reference(checkpoint: Path, load: Callable[[Path], Any]) -> Path:
    """The transformers model that `load` reads out of the GGUF file `checkpoint`, as a folder that is read in a
    twentieth of the time."""

    def save(output: Path) -> None:
        model, partial = load(checkpoint), output.with_suffix(".partial")
        del model.config.quantization_config, model.hf_quantizer  # else transformers refuses to write it
        model.is_quantized = False
        model.save_pretrained(partial)
        partial.rename(output)

    readers = "".join(version(name) for name in ("transformers", "gguf"))
    digest = hashlib.sha256(readers.encode() + checkpoint.read_bytes()).hexdigest()[:16]
    return _kept("reference", digest, save)


def _kept(name: str, digest: str, make: Callable[[Path], object]) -> Path:
    output = KEPT / f"{name}-{digest}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            for stale in KEPT.glob(f"{name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            make(output)
    return output


def with_limits(artifact: Path, folder: Path, **limits: int) -> Manifest:
    """`artifact` again, in `folder`, for other limits: `num_slots`, `max_length`. Neither changes any other file."""
    shutil.copytree(artifact, folder, copy_function=os.link)
    (folder / MANIFEST_NAME).unlink()
    manifest = dataclasses.replace(Manifest.load(artifact), **limits)
    manifest.save(folder)
    return manifest


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()[:16]


def _exporter_digest() -> str:
    exporter = [path for path in sorted(EXPORTER.rglob("*")) if path.suffix in (".py", ".cpp", ".h", ".txt")]
    engine = [ROOT / "model_repository" / "engine" / "1" / "autoglm_engine" / name for name in ENGINE_SOURCES]
    content = b"".join(path.read_bytes() for path in exporter + engine)
    return hashlib.sha256(content).hexdigest()[:16]
