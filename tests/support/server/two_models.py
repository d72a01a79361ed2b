"""A model repository with two families of models, whose tiny artifacts answer differently."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autoglm_cli.repository.writer import Family, write_family

from tests.conftest import MODEL_REPOSITORY
from tests.support.export.native_artifacts import write_native_artifact
from tests.support.export.tiny_decoders import SPECS, random_weights

ONE, OTHER = "phone", "chat-2.5"
LENGTHS = {ONE: 20_000, OTHER: 24_000}  # the limits of their artifacts, in tokens: an answer of seconds fits
SPEC = dataclasses.replace(SPECS["llama"], vocab_size=300)


def write_both(folder: Path, **settings: str) -> Path:
    """`settings`: of both engines, and of the tokenizers `exit_with_engine`."""
    repository = folder / "models"
    ends = {"exit_with_engine": settings.pop("exit_with_engine", "true")}
    for seed, name in enumerate((ONE, OTHER)):
        artifact = folder / f"artifact-{name}"
        write_native_artifact(artifact, SPEC, weights=random_weights(SPEC, seed), max_length=LENGTHS[name])
        own = {"engine": {"num_threads": "1", "cache_mode": "off", **settings}, "tokenizer": ends}
        write_family(Family(name, MODEL_REPOSITORY, artifact, settings=own, link=seed == 1), repository)
    return repository
