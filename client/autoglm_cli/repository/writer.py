"""Writes a family of models into a model repository, of the tree's: code, configuration, artifact.

The folders are made in a hidden one beside the repository, `.REPOSITORY-NAME.partial-PID`, and then renamed, the
ensemble's last: a server that looks meanwhile finds no half of a model. After a crash only the hidden folder is left;
the next one to write the same name removes it once its process is gone. Inside of the repository it would be a model
that Triton cannot load; it is made there only where the repository is a mount of its own, or where nothing can be
written beside it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autoglm_client.exceptions import RepositoryError
from autoglm_client.model_names import ENSEMBLE, ModelNames, name_trouble

from .names import renamed, with_parameters
from .repositories import CONFIG, ENGINE_PACKAGE, engine_package

_VERSION = "1"
_ARTIFACT = f"{_VERSION}/artifact"  # from the model's folder
_MANIFEST = "manifest.json"
_TEXTS = (
    _MANIFEST,
    "tokenizer.json",
    "chat_template.jinja",
    "chat_template_tool_use.jinja",
)  # of an artifact: all that is read of it but by the engine
_LEFT_OUT = ("__pycache__", "artifact")
_DEFAULT = ModelNames.of(ENSEMBLE)


@dataclass(frozen=True, slots=True)
class Family:
    """`source`: the model repository of the tree. `artifact`, `embedder`: exported folders; without an embedder there
    is no such model, nor one for images where the artifact has no tower. `settings`: model of the default family ->
    parameter -> value. `link`: symbolic links to code and artifacts in place of copies. `alone`: each model carries the
    code and what it reads of the artifact, as a model must that Triton fetches by itself, out of a repository that is
    no folder."""

    name: str
    source: Path
    artifact: Path
    embedder: Path | None = None
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    link: bool = False
    alone: bool = False

    @property
    def names(self) -> ModelNames:
        return ModelNames.of(self.name)

    @property
    def models(self) -> list[str]:
        """Of the default family, those that this one has, too; the ensemble comes last."""
        left_out = {_DEFAULT.embedder: not self.embedder, _DEFAULT.vision: not self.reads_images}
        return [model for model in _DEFAULT.all if not left_out.get(model)]

    @property
    def reads_images(self) -> bool:
        """Whether the artifact has a vision tower; one that cannot be read is refused where it is loaded."""
        try:
            return bool(json.loads((self.artifact / _MANIFEST).read_bytes()).get("vision"))
        except (OSError, ValueError, AttributeError):
            return False


def write_family(family: Family, repository: Path) -> list[str]:
    """The models' names. Raises RepositoryError: for a name that cannot be given or is taken, and where nothing can be
    written; the repository is then as it was."""
    if trouble := name_trouble(family.name):
        raise RepositoryError(trouble)
    names = [family.names.of_default(model) for model in family.models]
    _check_free(repository, names)
    with _written(repository), _stage(repository, family.name) as stage:
        for model in family.models:
            _write_model(family, model, stage / family.names.of_default(model))
        _install(stage, repository, names)
    return names


def _write_model(family: Family, model: str, folder: Path) -> None:
    source = family.source / model
    version = folder / _VERSION
    version.mkdir(parents=True)
    for path in sorted((source / _VERSION).iterdir()):
        if path.name not in _LEFT_OUT:
            _place(path, version / path.name, link=family.link)
    if model == _DEFAULT.engine and not (version / ENGINE_PACKAGE).exists():
        _place(_package_of(family.source), version / ENGINE_PACKAGE, link=family.link)
    artifact = {_DEFAULT.engine: family.artifact, _DEFAULT.embedder: family.embedder}.get(model)
    if artifact is not None:
        _place(artifact, folder / _ARTIFACT, link=family.link)
    if family.alone:
        _place_what_is_read(family, model, folder)
    try:
        text = renamed((source / CONFIG).read_text(encoding="utf-8"), model, family.names)
        text = with_parameters(text, {**_own(family, model), **family.settings.get(model, {})})
    except ValueError as error:
        raise RepositoryError(f"{source / CONFIG} is not the tree's: {error}") from None
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _place_what_is_read(family: Family, model: str, folder: Path) -> None:
    """Of the engine's folder, by the models beside it."""
    if model in (_DEFAULT.tokenizer, _DEFAULT.detokenizer, _DEFAULT.embedder, _DEFAULT.vision):
        _place(_package_of(family.source), folder / _VERSION / ENGINE_PACKAGE, link=family.link)
    if model in (_DEFAULT.tokenizer, _DEFAULT.detokenizer):
        (folder / _ARTIFACT).mkdir()
        for path in filter(Path.is_file, (family.artifact / name for name in _TEXTS)):
            _place(path, folder / _ARTIFACT / path.name, link=family.link)


def _package_of(source: Path) -> Path:
    """Beside the engine's model; else it is installed, as with the repository of an installed package."""
    beside = source / _DEFAULT.engine / _VERSION / ENGINE_PACKAGE
    package = beside if beside.is_dir() else engine_package()
    if package is None:
        raise RepositoryError(f"there is no package {ENGINE_PACKAGE}: it is not in {beside.parent}, and not installed")
    return package


def _own(family: Family, model: str) -> dict[str, str]:
    """What the models are told of each other. The default family's artifact stays one that the environment may name."""
    names, artifact = family.names, "" if family.name == ENSEMBLE else _ARTIFACT
    embedder = names.embedder if family.embedder else ""
    return {
        _DEFAULT.ensemble: {},
        _DEFAULT.tokenizer: {"engine_model": names.engine, "artifact": artifact},
        _DEFAULT.engine: {
            "ensemble_model": names.ensemble,
            "engine_model": names.engine,
            "detokenizer_model": names.detokenizer,
            "embedder_model": embedder,
            "vision_model": names.vision if family.reads_images else "",
            "artifact": artifact,
            "redis_prefix": names.ensemble,
        },
        _DEFAULT.detokenizer: {"engine_model": names.engine, "artifact": artifact},
        _DEFAULT.embedder: {"engine_model": names.engine, "embedder_model": embedder},
        _DEFAULT.vision: {"engine_model": names.engine, "artifact": artifact},
    }[model]


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    elif source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def _check_free(repository: Path, names: list[str]) -> None:
    for name in names:
        if (repository / name).exists() or (repository / name).is_symlink():
            raise RepositoryError(f"{repository} has a model {name} already; choose another name, or remove it first")


@contextmanager
def _written(repository: Path) -> Iterator[None]:
    """What goes wrong with files, in one sentence."""
    try:
        yield
    except shutil.Error as error:  # of copytree: a list of (source, target, why)
        raise RepositoryError(f"{repository} cannot be written: {error.args[0][0][2]}") from None
    except OSError as error:
        why = "it is no folder" if error.errno in (errno.ENOTDIR, errno.EEXIST) else error.strerror or error
        raise RepositoryError(f"{repository} cannot be written: {why}") from None


@contextmanager
def _stage(repository: Path, name: str) -> Iterator[Path]:
    is_new = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    place = _hidden_place(repository.resolve(), name)
    _remove_leftovers(place)
    stage = place.with_name(f"{place.name}.partial-{os.getpid()}")
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if is_new and not any(repository.iterdir()):
            repository.rmdir()


def _hidden_place(repository: Path, name: str) -> Path:
    """Hidden folders are named after this path."""
    beside = repository.parent
    can_move = os.access(beside, os.W_OK) and beside.stat().st_dev == repository.stat().st_dev
    return beside / f".{repository.name}-{name}" if can_move else repository / f".{name}"


def _remove_leftovers(place: Path) -> None:
    for path in place.parent.glob(f"{place.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _install(stage: Path, repository: Path, names: list[str]) -> None:
    done: list[Path] = []
    try:
        for name in names:
            (stage / name).rename(repository / name)
            done.append(repository / name)
    except OSError:
        for path in done:
            shutil.rmtree(path, ignore_errors=True)
        raise
