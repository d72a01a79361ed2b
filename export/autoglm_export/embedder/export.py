"""`autoglm export-embedder`: a sentence-embedding checkpoint (BERT, mean pooling) -> the artifact of the model
`embedder`.

What it reads is a folder as sentence-transformers writes it: config.json, model.safetensors, tokenizer.json,
sentence_bert_config.json (most tokens read), 1_Pooling/config.json. Torch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_engine.embedder import EMBEDDER_MODEL, TOKENIZER, EmbedderManifest

from autoglm_export.artifact_writer import check_replaceable, staged
from autoglm_export.checkpoint.bundled import find_bundled
from autoglm_export.checkpoint.safetensors import SafetensorsStore
from autoglm_export.checkpoint.tokenizer_trial import try_tokenizer
from autoglm_export.errors import CheckpointError, UnsupportedModel

from .graph import EncoderShape, write_encoder

BUNDLED_EMBEDDER = "all-minilm-l6-v2"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class EmbedderCheckpoint:
    folder: Path
    shape: EncoderShape
    max_tokens: int
    pad_token_id: int


def export_embedder(checkpoint: str | Path, output: Path) -> EmbedderManifest:
    """Write the artifact of `checkpoint` (a folder, or the bundled model's name) to `output`, atomically. Raises
    ExportError; then `output` is as it was."""
    check_replaceable(output)
    name = str(checkpoint)
    bundled = name == BUNDLED_EMBEDDER and not Path(checkpoint).exists()
    folder = find_bundled(name).parent if bundled else Path(checkpoint)
    found = read_checkpoint(folder)
    tokenizer = (folder / TOKENIZER).read_bytes()
    try_tokenizer(tokenizer)
    with staged(output) as stage:
        write_encoder(stage, SafetensorsStore([folder / _WEIGHTS]), found.shape)
        (stage / TOKENIZER).write_bytes(tokenizer)
        manifest = EmbedderManifest.of(
            stage,
            model_name=name if bundled else folder.resolve().name,
            num_dimensions=found.shape.hidden_size,
            max_tokens=found.max_tokens,
            pad_token_id=found.pad_token_id,
            files=(EMBEDDER_MODEL, f"{EMBEDDER_MODEL}.data", TOKENIZER),
        )
        manifest.save(stage)
    return manifest


def read_checkpoint(folder: Path) -> EmbedderCheckpoint:
    """Raises CheckpointError for a missing file or a damaged one, UnsupportedModel for another architecture or
    pooling."""
    try:
        return _read_checkpoint(folder)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise CheckpointError(f"{folder} holds something that no embedder does: {error!r}") from error


def _read_checkpoint(folder: Path) -> EmbedderCheckpoint:
    for name in ("config.json", _WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}, so it is no sentence-embedding checkpoint")
    config = _json(folder / "config.json")
    _check_config(config)
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not _json(pooling).get("pooling_mode_mean_tokens", False):
        raise UnsupportedModel(f"{pooling} asks for another pooling; supported is the mean over tokens")
    limit = folder / "sentence_bert_config.json"
    longest = int(config["max_position_embeddings"])
    return EmbedderCheckpoint(
        folder,
        EncoderShape.of(config),
        max_tokens=min(longest, int(_json(limit)["max_seq_length"])) if limit.is_file() else longest,
        pad_token_id=int(config.get("pad_token_id") or 0),
    )


def _check_config(config: Mapping[str, Any]) -> None:
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"the embedder's {key} is {config[key]!r}; supported is {value!r}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}; it must hold an object")
    return found
