"""Tiny artifacts of the native runtime, complete as an export leaves them, with one library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.manifest import CacheShape, FileRecord, Manifest
from autoglm_engine.runners.native.program import PROGRAM_FORMAT
from autoglm_export import compiler
from autoglm_export.model.spec import ModelSpec
from autoglm_export.native.lowering import MAX_LOGITS_PER_SPAN, write_program

from tests.support.export.tiny_decoders import random_weights
from tests.support.export.tiny_models import write_tokenizer

LIBRARY = "decoder/any.so"


def write_native_artifact(
    folder: Path, spec: ModelSpec, *, weights: Mapping[str, Any] | None = None, max_length: int = 64
) -> Manifest:
    """A vocabulary of at least 259 suits the tokenizer. Builds the decoder for this machine, or takes what was
    built."""
    (folder / "decoder").mkdir(parents=True)
    write_program(spec, weights or random_weights(spec), folder)
    built = compiler.build(compiler.DECODER_SOURCE, compiler.runnable_targets()[0])
    (folder / LIBRARY).write_bytes(built.read_bytes())
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    manifest = Manifest(
        model_name="tiny",
        family=spec.family,
        runtime="native",
        runtime_version="0",
        precision="int8",
        num_slots=3,
        max_length=max_length,
        prefill_chunk=16,
        vocab_size=spec.vocab_size,
        cache=CacheShape(spec.num_layers, spec.num_kv_heads, spec.head_size, "bfloat16"),
        eos_token_ids=(0,),
        bos_token_id=None,
        generation_defaults={},
        spec=spec.as_json(),
        runtime_details={
            "program_format": PROGRAM_FORMAT,
            "libraries": {"any": {"file": LIBRARY, "cpu_features": []}},
            "library_sources": "sources",
            "program": "program.bin",
            "weights": "weights.bin",
            "max_logits_per_span": MAX_LOGITS_PER_SPAN,
        },
        files=records(folder),
    )
    manifest.save(folder)
    return manifest


def records(folder: Path) -> dict[str, FileRecord]:
    """Of every file but the manifest."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): FileRecord.of(path) for path in files}


def relist(folder: Path) -> None:
    """Let the manifest say what lies there now, whatever it is."""
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    raw["files"] = {name: dataclasses.asdict(record) for name, record in records(folder).items()}
    path.write_text(json.dumps(raw))
