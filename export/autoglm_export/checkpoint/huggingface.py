"""Opens a Hugging Face folder: config.json, safetensors in one file or in shards, tokenizer.json, chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_export.errors import CheckpointError, TensorError, UnsupportedModel
from autoglm_export.model.spec import ModelSpec

from .base import Checkpoint, checked_tokenizer
from .families import Family
from .folder_files import read_bytes, read_json, read_json_if_there
from .generation.added_tokens import with_added_tokens
from .generation.chat_templates import read_chat_templates
from .generation.end_tokens import folder_end_tokens, unmet_ends
from .generation.generation_config import bos_token_id, read_generation
from .generation.special_tokens import special_tokens
from .hf_config import family_of, spec_from_config
from .safetensors import SafetensorsStore
from .vision import VisionCheckpoint, read_vision
from .weights import CheckpointWeights, check_counts, source_names, weight_shapes

INDEX_NAME = "model.safetensors.index.json"


def holds_safetensors(folder: Path) -> bool:
    return (folder / INDEX_NAME).exists() or (folder / "model.safetensors").exists()


def open_folder(folder: Path, name: str) -> Checkpoint:
    from tokenizers import Tokenizer

    config = read_json(folder / "config.json")
    family = family_of(config)
    spec = spec_from_config(config)
    store = SafetensorsStore(_shards(folder))
    tokenizer = checked_tokenizer(read_bytes(folder / "tokenizer.json"), spec.vocab_size)
    tokenizer = with_added_tokens(tokenizer, folder, spec.vocab_size)
    vision = _open_vision(folder, config, store, spec, tokenizer)
    generation = read_json_if_there(folder / "generation_config.json")
    named = special_tokens(folder, family.name, tokenizer)
    text_config = config.get("text_config") or {}  # `spec_from_config` knows that it is an object where it counts
    text_config = text_config if isinstance(text_config, dict) else {}
    read = Tokenizer.from_str(tokenizer.decode())
    ends = folder_end_tokens(spec.vocab_size, read, named, generation, config, text_config)
    templates = read_chat_templates(folder, takes_images=family.seeing is not None)
    return Checkpoint(
        name=name,
        source=name,
        spec=_with_deepstack(spec, vision) if vision else spec.without_images(),
        weights=_open_weights(folder, store, spec, family),
        tokenizer=tokenizer,
        templates=templates,
        special_tokens=named,
        eos_token_ids=ends,
        bos_token_id=bos_token_id(spec.vocab_size, generation, config, text_config),
        generation=read_generation(
            generation,
            config,
            vocab_size=spec.vocab_size,
            max_position=spec.max_position,
            eos_token_ids=ends,
            unmet_ends=unmet_ends(templates.default or "", read, ends),
        ),
        vision=vision,
    )


def _open_vision(
    folder: Path, config: dict[str, Any], store: SafetensorsStore, spec: ModelSpec, tokenizer: bytes
) -> VisionCheckpoint | None:
    """None for a folder that has no image processor: what is left of such a model reads text alone."""
    if not spec.takes_images or (processor := _image_processor(folder)) is None:
        return None
    return read_vision(config, processor, store, tokenizer, spec.hidden_size)


def _with_deepstack(spec: ModelSpec, vision: VisionCheckpoint) -> ModelSpec:
    if (count := len(vision.spec.deepstack)) >= spec.num_layers:
        raise UnsupportedModel(
            f"deepstack_visual_indexes names {count} blocks; they go to as many layers, and all but the last of the "
            f"decoder's {spec.num_layers} may have them"
        )
    return dataclasses.replace(spec, num_deepstack=count)


def _image_processor(folder: Path) -> dict[str, Any] | None:
    """transformers 5 keeps all processors in one file, and reads the other where that has none for images."""
    whole, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    nested = read_json(whole).get("image_processor") if whole.exists() else None
    if isinstance(nested, dict):
        return nested
    return read_json(own) if own.exists() else None


def _open_weights(folder: Path, store: SafetensorsStore, spec: ModelSpec, family: Family) -> CheckpointWeights:
    check_counts(spec, store)
    if spec.tied_embeddings and "lm_head.weight" in store.names():
        _check_tied(store, family)

    def is_ignored(name: str) -> bool:
        return name.startswith(family.ignored) or name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"

    weights = CheckpointWeights(store, weight_shapes(spec), source_names(spec, family), is_ignored)
    if (folder / INDEX_NAME).exists():
        _check_index(folder, store)
    return weights


def _check_tied(store: SafetensorsStore, family: Family) -> None:
    embed, everything = family.prefix + "embed_tokens.weight", slice(None)
    if not np.array_equal(store.read("lm_head.weight", everything), store.read(embed, everything)):
        raise TensorError(f"tie_word_embeddings is true, but lm_head.weight differs from {embed}")


def _shards(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if (folder / INDEX_NAME).exists():
        files = sorted(set(_weight_map(folder).values()))
    elif single.exists():
        files = [single.name]
    else:
        raise CheckpointError(f"{folder} has neither model.safetensors nor {INDEX_NAME}")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks the shard {missing[0]} that {INDEX_NAME} names")
    return [folder / name for name in files]


def _weight_map(folder: Path) -> Mapping[str, str]:
    weight_map = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map")
    if outside := [file for file in weight_map.values() if Path(file).name != file]:
        raise CheckpointError(f"{folder / INDEX_NAME} names {outside[0]}, which lies outside of the folder")
    return weight_map


def _check_index(folder: Path, store: SafetensorsStore) -> None:
    for name, file in _weight_map(folder).items():
        if name not in store.names() or store.shard(name) != file:
            raise TensorError(f"{INDEX_NAME} places {name} in {file}, which does not hold it")
