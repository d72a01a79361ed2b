"""Tiny Hugging Face folders and GGUF files of a llama model, written without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_export.checkpoint.families import FAMILIES
from autoglm_export.checkpoint.gguf.names import NAMES
from autoglm_export.checkpoint.weights import source_names
from autoglm_export.model.spec import ModelSpec
from safetensors.numpy import save_file

from tests.export.test_gguf import to_pairs, write_gguf
from tests.support.export.tiny_decoders import SPECS, random_weights
from tests.support.export.tiny_models import write_tokenizer

SPEC = dataclasses.replace(SPECS["llama"], vocab_size=300, num_layers=2, hidden_size=64)
QUERY = "model.layers.1.self_attn.q_proj.weight"


def config_of(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_size,
        "intermediate_size": spec.intermediate_size,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "max_position_embeddings": spec.max_position,
        "eos_token_id": 256,
    }


def tensors_of(spec: ModelSpec = SPEC) -> dict[str, Any]:
    """Under the names of a Hugging Face checkpoint."""
    weights = random_weights(spec)
    return {source.name: weights[name] for name, source in source_names(spec, FAMILIES["llama"]).items()}


def write_folder(folder: Path, tensors: Mapping[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors_of(), **(tensors or {})}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config_of(SPEC), **config}))
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return folder


def gguf_tensors(spec: ModelSpec = SPEC) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, weight in random_weights(spec).items():
        words = name.split(".")
        generic = ".".join(["layers", "{i}", *words[2:]]) if words[0] == "layers" else name
        heads = {"query": spec.num_heads, "key": spec.num_kv_heads}.get(words[2] if words[0] == "layers" else "")
        found[NAMES[generic].format(i=words[1] if len(words) > 1 else "")] = (
            to_pairs(weight, heads) if heads else weight
        )
    return found


def write_gguf_file(path: Path, tensors: Mapping[str, Any] | None = None, kind: str = "F32", **extra: Any) -> Path:
    write_gguf(path, SPEC, {**gguf_tensors(), **(tensors or {})}, kind, extra)
    return path


def spoilt(values: Any, number: float) -> Any:
    """With one of them replaced, in the middle."""
    values = np.array(values)
    values.reshape(-1)[values.size // 2] = number
    return values


_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def raw_safetensors(
    tensors: Mapping[str, Any], change: Callable[[dict[str, Any]], object] = lambda header: None, behind: bytes = b""
) -> bytes:
    """A file as the format wants it, but for what `change` makes of its header, and what lies `behind`."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        begin, data = len(data), data + values.tobytes()
        shape = list(values.shape)
        header[name] = {"dtype": _DTYPES[values.dtype.name], "shape": shape, "data_offsets": [begin, len(data)]}
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data + behind
