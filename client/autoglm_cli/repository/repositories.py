"""What is in a model repository: the families of models that work together, their settings and their artifacts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from autoglm_client.model_names import ENSEMBLE, ModelNames

CONFIG = "config.pbtxt"
ENGINE_PACKAGE = "autoglm_engine"
_INSTALLED = "autoglm_model_repository"


def engine_package() -> Path | None:
    """The folder of the installed engine; it is looked up, not imported."""
    spec = importlib.util.find_spec(ENGINE_PACKAGE)
    return Path(spec.origin).parent if spec and spec.origin else None


def installed_repository() -> Path | None:
    """The one that the installed package brings, beside the engine that its models then find installed. None where
    there is none, as in a source checkout."""
    package = engine_package()
    found = package.with_name(_INSTALLED) if package else None
    return found if found and found.is_dir() else None


def families(repository: Path) -> list[ModelNames]:
    """Those whose ensemble and engine are there: autoglm first, others by name."""
    found = [ModelNames.of(path.parent.name) for path in repository.glob(f"*/{CONFIG}")]
    complete = [names for names in found if (repository / names.engine / CONFIG).is_file()]
    return sorted(complete, key=lambda names: (names.ensemble != ENSEMBLE, names.ensemble))


def parameters(repository: Path, model: str) -> dict[str, str]:
    """Of one model's config.pbtxt."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (repository / model / CONFIG).read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


def own_artifact(repository: Path, names: ModelNames) -> Path | None:
    """The one that the family has for itself, whatever the environment says; None where the environment may name it."""
    engine = repository / names.engine
    own = parameters(repository, names.engine).get("artifact", "")
    return engine / own if own else None


def default_artifact(repository: Path, names: ModelNames) -> Path:
    """Where it is while nobody names another."""
    return repository / names.engine / "1" / "artifact"
