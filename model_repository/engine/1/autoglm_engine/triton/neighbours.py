"""The models that work together, as the parameters of each one's config.pbtxt name them: a server may hold several such
families, and none of them may ask another's models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARTIFACT_VARIABLE = "AUTOGLM_ARTIFACT"
EMBEDDER_VARIABLE = "AUTOGLM_EMBEDDER"
DEFAULT_ENGINE = "engine"
NAMES = ("ensemble_model", "engine_model", "detokenizer_model", "embedder_model", "vision_model", "artifact")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`ensemble`, `engine`, `detokenizer`, `embedder`, `vision`: the models' names; without an embedder that one is
    empty. `artifact`: this family's own, a folder; empty where the environment may name it."""

    ensemble: str = "autoglm"
    engine: str = DEFAULT_ENGINE
    detokenizer: str = "detokenizer"
    embedder: str = "embedder"
    vision: str = "vision"
    artifact: str = ""

    @classmethod
    def of(cls, model_config: str) -> Neighbours:
        """`model_config`: Triton's JSON of config.pbtxt. A name that it does not give is the default."""
        given = parameters(model_config)
        return cls(**{name.removesuffix("_model"): given[name] for name in NAMES if name in given})

    def artifact_folder(self, model_folder: str | Path, environ: Mapping[str, str] = os.environ) -> Path:
        """`model_folder`: any of the models' folders in the repository. The family's own artifact, where a path that is
        not absolute begins in the engine's folder; else AUTOGLM_ARTIFACT, else `1/artifact` in the engine's folder. A
        model that Triton fetched alone, as it does from a remote repository, has its own folder in place of the
        engine's.

        The environment is the whole server's: it does not go before what one family has for itself, since then all
        would answer alike."""
        beside = Path(model_folder).parent / self.engine
        engine = beside if beside.is_dir() else Path(model_folder)
        if self.artifact:
            return engine / self.artifact
        chosen = environ.get(ARTIFACT_VARIABLE)
        return Path(chosen) if chosen else engine / "1" / "artifact"

    def embedder_folder(self, model_folder: str | Path, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Of the embedder's artifact: AUTOGLM_EMBEDDER, else `1/artifact` in the embedder's folder. None where there is
        no embedder."""
        chosen = environ.get(EMBEDDER_VARIABLE)
        if not self.embedder:
            return None
        return Path(chosen) if chosen else Path(model_folder).parent / self.embedder / "1" / "artifact"


def parameters(model_config: str) -> dict[str, str]:
    """Of config.pbtxt, given as Triton's JSON of it, where an empty value may be left out."""
    raw: dict[str, Any] = json.loads(model_config).get("parameters", {})
    return {name: str(value.get("string_value", "")) for name, value in raw.items()}
