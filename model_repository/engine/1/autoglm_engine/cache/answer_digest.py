"""What a server makes of a request, told by a digest: kept answers count only among servers that have the same one.

That is the artifact, and what turns its logits into an answer: this engine's own code and the libraries that sample,
guide and decode. The code counts by its text, since a version would have to be raised by hand; so servers of two
releases share nothing, and each computes once more what the other has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.registry import installed_version

# numpy draws and sums, llguidance says what may come next, tokenizers is what stop strings are looked for in.
_LIBRARIES = ("numpy", "llguidance", "tokenizers")
_OF_RUNTIME = {"onnx": ("onnxruntime",)}  # an artifact fixes the others itself
_OF_IMAGES = ("pillow",)  # which decodes and resizes them


def answer_digest(manifest: Manifest) -> str:
    libraries = (*_LIBRARIES, *_OF_RUNTIME.get(manifest.runtime, ()))
    if manifest.vision:
        libraries += (*_OF_IMAGES, *_OF_RUNTIME.get(manifest.vision.runtime, ()))
    return combined(manifest.digest, code_digest(Path(__file__).parent.parent), versions(libraries))


def combined(artifact: str, code: str, libraries: Sequence[tuple[str, str | None]]) -> str:
    return hashlib.sha256(json.dumps([artifact, code, libraries]).encode()).hexdigest()


def code_digest(package: Path) -> str:
    """Of the text of every module in the folder and below it."""
    modules = [(path.relative_to(package).as_posix(), path.read_bytes()) for path in sorted(package.rglob("*.py"))]
    parts = [hashlib.sha256(part).digest() for name, text in modules for part in (name.encode(), text)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def versions(distributions: Sequence[str]) -> list[tuple[str, str | None]]:
    return [(name, installed_version(name)) for name in distributions]
