"""Opens a GGUF file (llama.cpp's format) as a `Checkpoint`."""

from __future__ import annotations

from autoglm_export.checkpoint.base import Checkpoint, checked_tokenizer
from autoglm_export.checkpoint.generation.chat_templates import ChatTemplates
from autoglm_export.checkpoint.generation.end_tokens import gguf_end_tokens
from autoglm_export.checkpoint.generation.generation_config import bos_token_id, generation_defaults
from autoglm_export.checkpoint.generation.special_tokens import gguf_special_tokens
from autoglm_export.checkpoint.weights import CheckpointWeights, check_counts, weight_shapes

from .file import GgufFile
from .metadata import spec_from_gguf
from .names import gguf_sources
from .paths import GgufPaths
from .tokenizer import build_tokenizer


def open_gguf(paths: GgufPaths, name: str) -> Checkpoint:
    file = GgufFile(*paths.shards)
    spec = spec_from_gguf(file)
    check_counts(spec, file)
    return Checkpoint(
        name=name,
        source=paths.shards[0].name,
        spec=spec.without_images(),
        weights=CheckpointWeights(
            file, weight_shapes(spec), gguf_sources(spec, file.names()), lambda name: name == "rope_freqs.weight"
        ),
        tokenizer=checked_tokenizer(build_tokenizer(file).to_str().encode(), spec.vocab_size),
        templates=ChatTemplates(file.get("tokenizer.chat_template"), file.get("tokenizer.chat_template.tool_use")),
        special_tokens=gguf_special_tokens(file),
        eos_token_ids=gguf_end_tokens(file, spec.vocab_size),
        bos_token_id=bos_token_id(spec.vocab_size, {"bos_token_id": file.get("tokenizer.ggml.bos_token_id")}),
        generation_defaults=generation_defaults({}, spec.vocab_size),
    )
