"""`manifest.json`: what an exported artifact is, so that a server can refuse one that it cannot run.

An artifact is a folder: the manifest, the tokenizer (`tokenizer.json`, `chat_template.jinja` where the model has one)
and the files of its runtime. `files` lists every file but the manifest, with size and SHA-256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
# What a manifest says and no answer depends on. Whatever is not named here counts, so that nothing is forgotten.
_NO_PART_OF_ANSWERS = ("model_name", "num_slots", "parity", "source", "exporter_version", "runtime_details", "files")
_NO_PART_OF_DETAILS = ("auto", "libraries")  # what was measured at export; which compiler built what


@dataclass(frozen=True, slots=True)
class FileRecord:
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        with path.open("rb") as stream:
            return cls(bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The key/value cache of one slot: `num_layers` pairs of `[num_kv_heads, max_length, head_size]`."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Manifest:
    model_name: str
    family: str
    runtime: str  # which runner loads it: "onnx", "native", "tensorrt", ...
    runtime_version: str
    precision: str  # "fp32", "int8", ...
    num_slots: int
    max_length: int
    prefill_chunk: int
    vocab_size: int
    cache: CacheShape
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    generation_defaults: dict[str, Any]  # names and ranges of `options.py`
    spec: dict[str, Any]  # the ModelSpec it was exported from
    runtime_details: dict[str, Any] = field(default_factory=dict)  # tensor names, CPU features, ...: the runner's own
    parity: dict[str, Any] | None = None
    source: str = ""  # the checkpoint's name, never a path of the exporting machine
    exporter_version: str = ""
    files: dict[str, FileRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """Identifies what the artifact answers: equal digests give equal answers, whatever the machine.

        So it counts what the manifest alone says, too: where an answer ends, and how long it may be. A compiled library
        counts by its sources: which compiler built it, and for which CPU, changes no answer.
        """
        contents = {name: record.sha256 for name, record in self.files.items()}
        details = dict(self.runtime_details)
        if details.get("library_sources"):
            for entry in details["libraries"].values():
                contents.pop(entry["file"], None)
        said = {name: value for name, value in dataclasses.asdict(self).items() if name not in _NO_PART_OF_ANSWERS}
        details = {name: value for name, value in details.items() if name not in _NO_PART_OF_DETAILS}
        whole = json.dumps([said, details, contents], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"no artifact at {folder}: {MANIFEST_NAME} is missing; run `autoglm export`") from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None
        return _from_json(raw, path)

    def verify_files(self, folder: Path, *, digests: bool = False) -> None:
        """Check that every listed file is there in its full size; with `digests`, that its content is the exported one."""
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"the artifact at {folder} lacks {name}; export it again")
            if path.stat().st_size != expected.bytes:
                raise ArtifactError(f"{path} has {path.stat().st_size} bytes, the manifest says {expected.bytes}")
            if digests and FileRecord.of(path).sha256 != expected.sha256:
                raise ArtifactError(
                    f"{path} is not the file that was exported: its SHA-256 differs from the manifest's"
                )


def _from_json(raw: Any, path: Path) -> Manifest:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version!r}, this engine reads {SCHEMA_VERSION}; export it again"
        )
    known = {f.name for f in dataclasses.fields(Manifest)}
    if unknown := sorted(raw.keys() - known):
        raise ArtifactError(f"{path} has unknown keys: {', '.join(unknown)}")
    try:
        return Manifest(
            **{
                **raw,
                "cache": CacheShape(**raw["cache"]),
                "eos_token_ids": tuple(raw["eos_token_ids"]),
                "files": {name: FileRecord(**record) for name, record in raw["files"].items()},
            }
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is incomplete: {error}") from None
