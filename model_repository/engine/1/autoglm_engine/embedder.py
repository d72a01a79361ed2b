"""The embedder model's core: texts in, sentence embeddings of length 1 out, by ONNX Runtime on the CPU.

Its artifact is a folder: manifest.json, model.onnx with its weights, tokenizer.json. The server runs without one; then
nothing can be compared by meaning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArtifactError
from .manifest import MANIFEST_NAME, FileRecord, records_of, verify_files
from .manifest_checks import OBJECT, TEXT, check, one_of, read_json, whole

EMBEDDER_MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
KIND = "embedder"
MAX_CHARACTERS = 8192  # more than `max_tokens` tokens; the rest is not read

_MAX = 1 << 20
_RULES = {
    "model_name": TEXT,
    "num_dimensions": whole(1, _MAX),
    "max_tokens": whole(1, _MAX),
    "pad_token_id": whole(0, _MAX),
    "files": OBJECT,
    "kind": one_of(KIND),
}

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbedderManifest:
    """`max_tokens`: of a longer text only the beginning is embedded."""

    model_name: str
    num_dimensions: int
    max_tokens: int
    pad_token_id: int
    files: dict[str, FileRecord]
    kind: str = KIND

    @classmethod
    def of(cls, folder: Path, *, files: Sequence[str], **fields: Any) -> EmbedderManifest:
        return cls(files={name: FileRecord.of(folder / name) for name in files}, **fields)

    @classmethod
    def load(cls, folder: Path) -> EmbedderManifest:
        """Raises ArtifactError for what is no embedder, or one whose files are not there in full size."""
        path = folder / MANIFEST_NAME
        try:
            raw = read_json(path)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} is no exported embedder: {error}") from None
        if raw.keys() != {f.name for f in dataclasses.fields(cls)}:
            raise ArtifactError(f"{folder} is no exported embedder: {MANIFEST_NAME} has other keys")
        check(raw, _RULES, path)
        manifest = cls(**{**raw, "files": records_of(raw["files"], path)})
        if missing := [name for name in (EMBEDDER_MODEL, TOKENIZER) if name not in manifest.files]:
            raise ArtifactError(f"{path} does not list {missing[0]}; export the embedder again")
        verify_files(folder, manifest.files, digests=False)
        return manifest

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @property
    def digest(self) -> str:
        """Embeddings of two embedders compare only where this is equal."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def is_exported(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()


class Embedder:
    """One session; not for use from two threads at once."""

    def __init__(self, folder: Path, *, num_threads: int = 1) -> None:
        """Raises ArtifactError."""
        import onnxruntime
        from tokenizers import Tokenizer

        self.manifest = EmbedderManifest.load(folder)
        verify_files(folder, self.manifest.files, digests=True)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.enable_truncation(self.manifest.max_tokens)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the engine has the cores
        self._session = onnxruntime.InferenceSession(
            str(folder / EMBEDDER_MODEL), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """float32 [len(texts), num_dimensions]."""
        rows = [self._tokenizer.encode(text[:MAX_CHARACTERS]).ids for text in texts]
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.manifest.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.float32)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1.0
        (embeddings,) = self._session.run(["embedding"], {"token_ids": ids, "mask": mask})
        found: Embeddings = embeddings
        return found
