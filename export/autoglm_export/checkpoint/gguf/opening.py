"""Opens a GGUF file (llama.cpp's format) as a `Checkpoint`."""

from __future__ import annotations

from autoglm_export.checkpoint.base import Checkpoint, checked_tokenizer
from autoglm_export.checkpoint.generation.chat_templates import gguf_chat_templates
from autoglm_export.checkpoint.generation.end_tokens import gguf_end_tokens
from autoglm_export.checkpoint.generation.generation_config import bos_token_id, gguf_generation
from autoglm_export.checkpoint.generation.special_tokens import gguf_special_tokens
from autoglm_export.checkpoint.vision import VisionCheckpoint
from autoglm_export.checkpoint.weights import CheckpointWeights, check_counts, weight_shapes
from autoglm_export.errors import CheckpointError, UnsupportedModel
from autoglm_export.model.spec import ModelSpec

from .file import GgufFile
from .metadata import spec_from_gguf
from .names import gguf_sources
from .paths import GgufPaths
from .projector import read_projector
from .tokenizer import build_tokenizer


def open_gguf(paths: GgufPaths, name: str) -> Checkpoint:
    file = GgufFile(*paths.shards)
    spec = spec_from_gguf(file)
    check_counts(spec, file)
    tokenizer = checked_tokenizer(build_tokenizer(file).to_str().encode(), spec.vocab_size)
    vision = _open_vision(paths, spec, tokenizer)
    return Checkpoint(
        name=name,
        source=paths.shards[0].name,
        spec=spec if vision else spec.without_images(),
        weights=CheckpointWeights(
            file, weight_shapes(spec), gguf_sources(spec, file.names()), lambda name: name == "rope_freqs.weight"
        ),
        tokenizer=tokenizer,
        templates=gguf_chat_templates(file),
        special_tokens=gguf_special_tokens(file),
        eos_token_ids=gguf_end_tokens(file, spec.vocab_size),
        bos_token_id=bos_token_id(spec.vocab_size, {"bos_token_id": file.get("tokenizer.ggml.bos_token_id")}),
        generation=gguf_generation(file, spec.vocab_size),
        vision=vision,
    )


def _open_vision(paths: GgufPaths, spec: ModelSpec, tokenizer: bytes) -> VisionCheckpoint | None:
    """None for a model without its vision part, which reads text alone. A folder may hold files of other models, too,
    so what lies beside a file is taken only for a model that takes images."""
    if not paths.projectors or not (spec.takes_images or paths.is_folder):
        return None
    names = ", ".join(path.name for path in paths.projectors)
    if not spec.takes_images:
        raise UnsupportedModel(
            f"{names} is for a model that takes images, and {paths.shards[0].name} takes none: it has no "
            "rope.dimension_sections; name that file to have it read text alone"
        )
    if len(paths.projectors) > 1:
        raise CheckpointError(f"{paths.shards[0].parent} holds several vision parts; leave one of them: {names}")
    return read_projector(paths.projectors[0], tokenizer, spec.hidden_size)
