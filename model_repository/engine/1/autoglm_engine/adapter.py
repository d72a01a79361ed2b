"""What the three Triton adapters share. Triton itself stays outside: they pass in what they have."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ARTIFACT_VARIABLE = "AUTOGLM_ARTIFACT"


def artifact_folder(model_folder: str, environ: Mapping[str, str] = os.environ) -> Path:
    """`model_folder`: any model's folder in the repository. AUTOGLM_ARTIFACT, else `engine/1/artifact` beside it."""
    chosen = environ.get(ARTIFACT_VARIABLE)
    return Path(chosen) if chosen else Path(model_folder).parent / "engine" / "1" / "artifact"


def model_parameters(model_config: str) -> dict[str, str]:
    """The `parameters` of a config.pbtxt, from Triton's JSON of it."""
    raw: dict[str, Any] = json.loads(model_config).get("parameters", {})
    return {name: str(value["string_value"]) for name, value in raw.items()}
